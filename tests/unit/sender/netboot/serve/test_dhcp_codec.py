"""DHCP messages as bytes: a failure would leave machines without a boot file, or end the service by one datagram."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from sender.netboot.serve.dhcp_codec import (
    MESSAGE_BYTES_MIN,
    DhcpMessage,
    DhcpOperation,
    MessageType,
    Option,
    decode_dhcp_untrusted,
    encode_dhcp,
)
from tests.support.network.dhcp_messages import MAC, UUID, UUID_OPTION, client_message, ipxe_message

OVMF_DISCOVER = bytes.fromhex(
    "010106001a2b3c4d000480000000000000000000000000000000000052540099000100000000000000000000"
    + "00" * 192
    + "63825363"
    "350101"  # DISCOVER
    "390205c0"  # maximum message size
    "370a01020304050c0d2b4243"  # requested options
    "6111" + UUID_OPTION.hex()
    + "5e03010310"  # UNDI 3.16
    "5d020007"  # x86-64
    "3c20" + b"PXEClient:Arch:00007:UNDI:003016".hex() + "ff"
)  # fmt: skip
"""A DISCOVER in the form of EDK2's (NetworkPkg/UefiPxeBcDxe)."""


def test_a_discover_of_uefi_firmware_is_understood() -> None:
    message = decode_dhcp_untrusted(OVMF_DISCOVER)
    assert message.operation is DhcpOperation.REQUEST
    assert message.message_type is MessageType.DISCOVER
    assert (message.mac, message.transaction_id, message.seconds) == (MAC, 0x1A2B3C4D, 4)
    assert (message.architecture, message.uuid, message.is_ipxe) == (7, UUID, False)
    assert message.vendor_class == b"PXEClient:Arch:00007:UNDI:003016"


def test_ipxe_is_recognised_by_either_option() -> None:
    assert ipxe_message().is_ipxe
    assert client_message(more={Option.USER_CLASS: b"\x04iPXE"}).is_ipxe  # in the form of RFC 3004
    assert not client_message().is_ipxe


def test_a_reply_has_the_layout_that_firmware_reads() -> None:
    reply = dataclasses.replace(
        client_message(MessageType.OFFER),
        operation=DhcpOperation.REPLY,
        server_address=IPv4Address("10.0.0.2"),
        boot_file=b"snponly.efi",
        options={
            Option.RELAY_AGENT: b"port 7",
            Option.BOOT_FILE: b"snponly.efi",
            Option.MESSAGE_TYPE: b"\x02",
        },
    )
    data = encode_dhcp(reply)
    assert len(data) == MESSAGE_BYTES_MIN
    assert data[:4] == b"\x02\x01\x06\x00"
    assert data[20:24] == bytes([10, 0, 0, 2])
    assert data[108:120] == b"snponly.efi\0"
    assert data[236:243] == b"\x63\x82\x53\x63\x35\x01\x02"
    assert data[243:].rstrip(b"\0") == b"\x43\x0bsnponly.efi\x52\x06port 7\xff"


@given(
    options=st.dictionaries(
        st.integers(1, 254).filter(lambda code: code != Option.OVERLOAD), st.binary(max_size=300), max_size=4
    ),
    mac=st.binary(min_size=6, max_size=6),
    numbers=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 65535), st.integers(0, 65535)),
    addresses=st.tuples(*[st.integers(0, 2**32 - 1).map(IPv4Address)] * 4),
)
def test_every_message_survives_its_encoding(
    options: dict[int, bytes],
    mac: bytes,
    numbers: tuple[int, int, int],
    addresses: tuple[IPv4Address, IPv4Address, IPv4Address, IPv4Address],
) -> None:
    message = DhcpMessage(DhcpOperation.REPLY, 1, 3, *numbers, *addresses, mac, b"name", b"file", options)
    data = encode_dhcp(message)
    if len(data) > 1500:
        return
    assert decode_dhcp_untrusted(data) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        OVMF_DISCOVER[:239],
        OVMF_DISCOVER[:236] + b"\0\0\0\0" + OVMF_DISCOVER[240:],
        b"\x07" + OVMF_DISCOVER[1:],
        OVMF_DISCOVER[:2] + b"\x20" + OVMF_DISCOVER[3:],
        OVMF_DISCOVER[:240] + b"\x43\x20short",
        OVMF_DISCOVER + b"\0" * 2000,
        OVMF_DISCOVER[:240] + b"\x01\x00" * 200,
    ],
    ids=[
        "empty",
        "short",
        "BOOTP",
        "operation",
        "address length",
        "option cut short",
        "long",
        "many options",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_dhcp_untrusted(data)


def test_options_continue_in_the_overloaded_fields() -> None:
    plain = client_message()
    data = bytearray(
        encode_dhcp(dataclasses.replace(plain, options={Option.OVERLOAD: b"\x03", **plain.options}))
    )
    data[108:117] = b"\x43\x06a.file\xff"[:9]
    data[44:50] = b"\x0c\x03abc\xff"
    message = decode_dhcp_untrusted(bytes(data))
    assert message.options[Option.BOOT_FILE] == b"a.file"
    assert message.options[Option.HOST_NAME] == b"abc"
    assert (message.boot_file, message.server_name) == (b"", b"")
