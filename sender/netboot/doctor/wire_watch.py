"""The boots on a network, as their datagrams show them. Pure: datagrams and times in, facts out."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address
from typing import Final

from protocol.errors import ProtocolError
from sender.netboot.doctor.frames import UdpDatagram
from sender.netboot.serve.boot_files import TFTP_PORT
from sender.netboot.serve.dhcp_codec import (
    UNSPECIFIED,
    DhcpMessage,
    DhcpOperation,
    MessageType,
    Option,
    decode_dhcp_untrusted,
)
from sender.netboot.serve.proxy_dhcp import CLIENT_PORT, PROXY_PORT, SERVER_PORT
from sender.netboot.serve.tftp_codec import ErrorPacket, Opcode, ReadRequest, decode_tftp_untrusted

WATCHED_PORTS: Final = (SERVER_PORT, CLIENT_PORT, TFTP_PORT, PROXY_PORT)
MACHINES_MAX: Final = 1024
"""With forged addresses there would be more; the first ones are enough for a diagnosis."""
_FILES_MAX: Final = 32


@dataclasses.dataclass(slots=True)
class MachineTrace:
    """The datagrams of one machine.

    Attributes:
        mac: hardware address.
        architecture: value of option 93 of its firmware; None if it didn't send one.
        waited_s: the firmware's own count of seconds in its first DISCOVER: earlier ones were lost.
        firmware_discovers: DISCOVERs of the firmware.
        ipxe_discovers: DISCOVERs of iPXE, which the firmware has loaded.
        boots: it asked for a boot file.
        boot_offers: servers that offered it a boot file, with the file.
        requested_server: server whose address it took; None so far.
        proxy_requests: requests to port 4011.
        proxy_answers: answers from port 4011.
        files: files that it asked for by TFTP.
        data_packets: TFTP data for it.
        tftp_error: error that ended a transfer; empty if there was none.
    """

    mac: str
    architecture: int | None = None
    waited_s: int = 0
    firmware_discovers: int = 0
    ipxe_discovers: int = 0
    boots: bool = False
    boot_offers: dict[IPv4Address, str] = dataclasses.field(default_factory=dict)
    requested_server: IPv4Address | None = None
    proxy_requests: int = 0
    proxy_answers: int = 0
    files: list[str] = dataclasses.field(default_factory=list)
    data_packets: int = 0
    tftp_error: str = ""


class WireWatch:
    """The machines that have been seen.

    Attributes:
        machines: by hardware address.
    """

    def __init__(self) -> None:
        """Start without machines."""
        self.machines: dict[str, MachineTrace] = {}
        self._addresses: dict[IPv4Address, str] = {}

    def observe(self, datagram: UdpDatagram) -> None:
        """Take note of one datagram."""
        ports = {datagram.source_port, datagram.destination_port}
        try:
            if TFTP_PORT in ports:
                self._observe_tftp(datagram)
            elif ports & set(WATCHED_PORTS):
                self._observe_dhcp(decode_dhcp_untrusted(datagram.payload), datagram)
        except ProtocolError:
            return

    def _observe_dhcp(self, message: DhcpMessage, datagram: UdpDatagram) -> None:
        if len(self.machines) >= MACHINES_MAX and message.mac not in self.machines:
            return
        machine = self.machines.setdefault(message.mac, MachineTrace(message.mac))
        if message.operation is DhcpOperation.REQUEST:
            self._observe_client(machine, message, datagram)
        else:
            self._observe_server(machine, message, datagram)

    def _observe_client(self, machine: MachineTrace, message: DhcpMessage, datagram: UdpDatagram) -> None:
        if message.vendor_class.startswith((b"PXEClient", b"HTTPClient")) or message.is_ipxe:
            machine.boots = True
        if datagram.source != UNSPECIFIED:
            self._addresses[datagram.source] = machine.mac
        if datagram.destination_port == PROXY_PORT:
            machine.proxy_requests += 1
        elif message.message_type is MessageType.DISCOVER:
            if message.is_ipxe:
                machine.ipxe_discovers += 1
                return
            if not machine.firmware_discovers:
                machine.waited_s = message.seconds
            machine.firmware_discovers += 1
            machine.architecture = message.architecture
        elif message.message_type is MessageType.REQUEST:
            server = message.address_option(Option.SERVER_IDENTIFIER)
            machine.requested_server = server or machine.requested_server
            wanted = message.address_option(Option.REQUESTED_ADDRESS)
            if wanted is not None:
                self._addresses[wanted] = machine.mac

    def _observe_server(self, machine: MachineTrace, message: DhcpMessage, datagram: UdpDatagram) -> None:
        if datagram.source_port == PROXY_PORT:
            machine.proxy_answers += 1
        server = message.address_option(Option.SERVER_IDENTIFIER) or datagram.source
        if message.boot_file_name:
            machine.boot_offers[server] = message.boot_file_name
        if message.your_address != UNSPECIFIED:
            self._addresses[message.your_address] = machine.mac

    def _observe_tftp(self, datagram: UdpDatagram) -> None:
        to_server = datagram.destination_port == TFTP_PORT
        mac = self._addresses.get(datagram.source if to_server else datagram.destination)
        machine = None if mac is None else self.machines.get(mac)
        if machine is None:
            return
        if not to_server:
            opcode = int.from_bytes(datagram.payload[:2], "big")
            if opcode in (Opcode.DATA, Opcode.OPTION_ACK):
                machine.data_packets += 1
            elif opcode == Opcode.ERROR:
                packet = decode_tftp_untrusted(datagram.payload)
                machine.tftp_error = packet.text if isinstance(packet, ErrorPacket) else ""
            return
        packet = decode_tftp_untrusted(datagram.payload)
        if (
            isinstance(packet, ReadRequest)
            and packet.file_name not in machine.files
            and len(machine.files) < _FILES_MAX
        ):
            machine.files.append(packet.file_name)
