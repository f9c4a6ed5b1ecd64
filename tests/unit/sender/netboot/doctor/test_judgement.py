"""The netboot doctor: a failure would send an administrator to the wrong device, or call a broken network healthy."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address

import pytest

from protocol.errors import ProtocolError
from protocol.program.findings import Finding, Status
from sender.netboot.doctor.frames import UdpDatagram, decode_packet_untrusted
from sender.netboot.doctor.judgement import NetworkFacts, judge_machines, judge_network
from sender.netboot.doctor.packet_capture import port_filter
from sender.netboot.doctor.wire_watch import WireWatch
from sender.netboot.serve.dhcp_codec import (
    DhcpMessage,
    DhcpOperation,
    MessageType,
    Option,
    address_bytes,
    encode_dhcp,
)
from sender.netboot.serve.tftp_codec import TftpError, encode_data, encode_error
from tests.support.network.dhcp_messages import client_message, ipxe_message

OURS = "10.0.0.2"
DHCP_SERVER = "10.0.0.1"
MACHINE = "10.0.0.50"
ANY = "0.0.0.0"
ALL = "255.255.255.255"


def offer(
    server: str = DHCP_SERVER, *, file: str = "", next_server: str = ANY, your_address: str = MACHINE
) -> DhcpMessage:
    request = client_message()
    return dataclasses.replace(
        request,
        operation=DhcpOperation.REPLY,
        your_address=IPv4Address(your_address),
        server_address=IPv4Address(next_server),
        boot_file=file.encode(),
        options={
            Option.MESSAGE_TYPE: bytes([MessageType.OFFER]),
            Option.SERVER_IDENTIFIER: address_bytes(server),
        },
    )


def facts(*offers: DhcpMessage) -> NetworkFacts:
    return NetworkFacts("eth1", IPv4Address(OURS), 60.0, offers)


def datagram(payload: bytes, source: str, source_port: int, destination: str, port: int) -> UdpDatagram:
    return UdpDatagram(IPv4Address(source), source_port, IPv4Address(destination), port, payload)


def from_client(
    message: DhcpMessage, source: str = ANY, destination: str = ALL, port: int = 67
) -> UdpDatagram:
    return datagram(encode_dhcp(message), source, 68, destination, port)


def from_server(message: DhcpMessage, source: str, port: int = 67) -> UdpDatagram:
    return datagram(encode_dhcp(message), source, port, ALL, 68)


DISCOVER = from_client(client_message())
OUR_OFFER = from_server(offer(OURS, file="snponly.efi", next_server=OURS, your_address=ANY), OURS)
THEIR_OFFER = from_server(offer(), DHCP_SERVER)
REQUEST = from_client(client_message(MessageType.REQUEST, server=DHCP_SERVER, requested=MACHINE))
READ = datagram(b"\0\x01snponly.efi\0octet\0", MACHINE, 2000, OURS, 69)
READ_SHIM = datagram(b"\0\x01shimx64.efi\0octet\0", MACHINE, 2000, OURS, 69)
DATA = datagram(encode_data(1, b"x"), OURS, 69, MACHINE, 2000)
MISSING = datagram(encode_error(TftpError.FILE_NOT_FOUND, "no such file"), OURS, 69, MACHINE, 2000)
IPXE = from_client(ipxe_message())
AT_4011 = from_client(client_message(MessageType.REQUEST), source=MACHINE, destination=OURS, port=4011)
LATE = from_client(client_message(seconds=30))
HTTP_CLASS = b"HTTPClient:Arch:00016:UNDI:003001"
HTTP = [
    from_client(client_message(architecture=16, vendor_class=HTTP_CLASS)),
    from_client(
        client_message(
            MessageType.REQUEST,
            architecture=16,
            vendor_class=HTTP_CLASS,
            server=DHCP_SERVER,
            requested=MACHINE,
        )
    ),
]
UNSUPPORTED = from_client(client_message(architecture=6))


def judged(datagrams: Sequence[UdpDatagram], network: NetworkFacts) -> list[Finding]:
    watch = WireWatch()
    for one in datagrams:
        watch.observe(one)
    return judge_machines(list(watch.machines.values()), network)


@pytest.mark.parametrize(
    ("datagrams", "status", "detail", "fix"),
    [
        ([DISCOVER, OUR_OFFER, DISCOVER, DISCOVER], Status.FAIL, "DISCOVER sent 3 times, offers ignored",
         "set options 66/67 on 10.0.0.1 like this: diskcast netboot print-config"),
        ([DISCOVER, DISCOVER], Status.FAIL, "asked 2 times, and nothing offers a boot file", "netboot serve DIR"),
        ([DISCOVER, OUR_OFFER, THEIR_OFFER, REQUEST], Status.FAIL, "ignored the boot file of 10.0.0.2",
         "set options 66/67 on 10.0.0.1"),
        ([DISCOVER, REQUEST], Status.FAIL, "nothing offers a boot file", "firewall"),
        ([DISCOVER, from_server(offer(file="pxelinux.0"), DHCP_SERVER), OUR_OFFER, REQUEST], Status.FAIL,
         "10.0.0.1 sends it the boot file 'pxelinux.0'", "change options 66/67 on 10.0.0.1"),
        ([DISCOVER, OUR_OFFER, REQUEST, AT_4011], Status.FAIL, "UDP port 4011 got no answer", "firewall"),
        ([DISCOVER, OUR_OFFER, REQUEST, READ], Status.FAIL, "'snponly.efi' by TFTP, and got no answer", "UDP port 69"),
        ([DISCOVER, OUR_OFFER, REQUEST, READ, MISSING], Status.FAIL, "no such file", "boot medium"),
        ([DISCOVER, OUR_OFFER, REQUEST, READ, DATA], Status.WARN, "Secure Boot refuses it", "--secure-boot"),
        ([DISCOVER, OUR_OFFER, REQUEST, READ_SHIM, DATA], Status.FAIL, "no next-server", "--secure-boot"),
        ([DISCOVER, OUR_OFFER, REQUEST, READ, DATA, IPXE], Status.OK, "iPXE runs", ""),
        ([UNSUPPORTED, UNSUPPORTED], Status.FAIL, "architecture 6", "64-bit UEFI"),
        ([*HTTP], Status.OK, "HTTP Boot", ""),
    ],
)  # fmt: skip
def test_each_way_to_fail_is_named_with_its_fix(
    datagrams: Sequence[UdpDatagram], status: Status, detail: str, fix: str
) -> None:
    (finding,) = judged(datagrams, facts(offer()))
    assert finding.status is status
    assert detail in finding.detail
    assert fix in finding.fix


def test_a_slow_switch_port_is_named_beside_the_boot() -> None:
    found = judged([LATE, OUR_OFFER, REQUEST, READ, DATA, IPXE], facts(offer()))
    assert [finding.status for finding in found] == [Status.WARN, Status.OK]
    assert "30 s late" in found[0].detail
    assert "PortFast" in found[0].fix


def test_a_network_without_dhcp_server_is_named_at_the_machine_too() -> None:
    (finding,) = judged([DISCOVER, OUR_OFFER], facts())
    assert "no DHCP server answers" in finding.detail
    assert "--mode dhcp" in finding.fix


def test_silence_is_no_success() -> None:
    computer = from_client(client_message(vendor_class=b"MSFT 5.0", architecture=None))
    (finding,) = judged([computer], facts(offer()))
    assert finding.status is Status.WARN
    assert "no machine asked" in finding.detail


@pytest.mark.parametrize(
    ("offers", "status", "detail"),
    [
        ([], Status.WARN, "no DHCP server answers"),
        ([offer()], Status.OK, "10.0.0.1 leases addresses and names no boot file"),
        ([offer(), offer("10.0.0.3")], Status.WARN, "2 DHCP servers answer"),
        ([offer(file="pxelinux.0", next_server="10.0.0.9")], Status.WARN, "'pxelinux.0' of 10.0.0.9"),
        ([offer(file="snponly.efi", next_server=OURS)], Status.OK, "of this machine"),
        ([offer(file=f"http://{OURS}:8069/boot.ipxe")], Status.OK, "of this machine"),
    ],
)
def test_the_dhcp_server_is_judged(offers: list[DhcpMessage], status: Status, detail: str) -> None:
    (finding,) = judge_network(facts(*offers))
    assert finding.status is status
    assert detail in finding.detail


def test_garbage_on_the_wire_is_ignored() -> None:
    watch = WireWatch()
    watch.observe(datagram(b"garbage", ANY, 68, ALL, 67))
    watch.observe(datagram(b"", MACHINE, 2000, OURS, 69))
    assert watch.machines == {}


def test_fragments_and_other_protocols_are_no_datagrams() -> None:
    packet = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 36, 0, 0, 64, 17, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    packet += struct.pack("!HHHH", 67, 68, 16, 0) + b"12345678"
    assert decode_packet_untrusted(packet).payload == b"12345678"
    for wrong in (
        b"",
        packet[:30],
        b"\x65" + packet[1:],
        packet[:9] + b"\x06" + packet[10:],
        packet[:6] + b"\x20\0" + packet[8:],
    ):
        with pytest.raises(ProtocolError):
            decode_packet_untrusted(wrong)


def test_the_filter_passes_the_watched_ports_only() -> None:
    """Interpreted here as the kernel does: a wrong jump would pass a whole cast through Python."""
    program = [
        struct.unpack_from("=HBBI", port_filter((67, 69)), at)
        for at in range(0, len(port_filter((67, 69))), 8)
    ]

    def passes(
        protocol: int, source: int, destination: int, header_bytes: int = 20, ethertype: int = 0x0800
    ) -> bool:
        packet = bytes([0x40 | header_bytes // 4]) + bytes(8) + bytes([protocol]) + bytes(header_bytes - 10)
        packet += struct.pack("!HH", source, destination)
        accumulator = index = at = 0
        while True:
            code, true, false, value = program[at]
            at += 1
            match code:
                case 0x28:
                    accumulator = ethertype
                case 0x30:
                    accumulator = packet[value]
                case 0xB1:
                    index = 4 * (packet[value] & 0xF)
                case 0x48:
                    accumulator = int.from_bytes(packet[index + value : index + value + 2], "big")
                case 0x15:
                    at += true if accumulator == value else false
                case 0x06:
                    return value > 0

    assert passes(17, 68, 67)
    assert passes(17, 67, 9, header_bytes=24)
    assert passes(17, 2000, 69)
    assert not passes(17, 2000, 7400)
    assert not passes(6, 68, 67)
    assert not passes(17, 68, 67, ethertype=0x86DD)
