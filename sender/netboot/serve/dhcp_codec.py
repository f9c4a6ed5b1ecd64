"""DHCP messages as bytes: RFC 2131, with options of RFC 2132, 3396, 4578 and PXE 2.1.

Pure: no socket and no clock.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import struct
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Final

from protocol.errors import ProtocolError

MAGIC_COOKIE: Final = b"\x63\x82\x53\x63"
OPTIONS_OFFSET: Final = 240
MESSAGE_BYTES_MIN: Final = 300
"""Size of a BOOTP message; some firmware drops shorter ones (RFC 1542, 2.1)."""
MESSAGE_BYTES_MAX: Final = 1500
"""Larger datagrams aren't from a boot firmware: Ethernet would have fragmented them."""
UNSPECIFIED: Final = IPv4Address(0)
BROADCAST: Final = IPv4Address(0xFFFFFFFF)
BROADCAST_FLAG: Final = 0x8000
ETHERNET: Final = 1
MAC_BYTES: Final = 6

_HEADER: Final = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_OPTION_BYTES_MAX: Final = 255
_OPTION_COUNT_MAX: Final = 128
"""Firmware sends about twenty."""


class DhcpOperation(enum.IntEnum):
    """Direction of a message."""

    REQUEST = 1
    REPLY = 2


class MessageType(enum.IntEnum):
    """DHCP message type, option 53."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(enum.IntEnum):
    """Codes of options."""

    PAD = 0
    SUBNET_MASK = 1
    HOST_NAME = 12
    VENDOR_SPECIFIC = 43
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_IDENTIFIER = 54
    PARAMETER_LIST = 55
    VENDOR_CLASS = 60
    TFTP_SERVER_NAME = 66
    BOOT_FILE = 67
    USER_CLASS = 77
    RELAY_AGENT = 82
    CLIENT_ARCHITECTURE = 93
    CLIENT_UUID = 97
    IPXE_ENCAPSULATED = 175
    END = 255


class ClientArchitecture(enum.IntEnum):
    """Architecture of a client, option 93 (IANA's list of processor architecture types)."""

    BIOS = 0
    UEFI_IA32 = 6
    UEFI_X64_EBC = 7
    """x64: RFC 4578 lists it as EBC, and all firmware uses it for x64 (erratum 4625)."""
    UEFI_X64 = 9
    UEFI_ARM64 = 11
    UEFI_X64_HTTP = 16
    UEFI_ARM64_HTTP = 19


@dataclasses.dataclass(frozen=True, slots=True)
class DhcpMessage:
    """A DHCP message.

    Attributes:
        operation: request or reply.
        hardware_type: 1 for Ethernet.
        hops: number of relays that it passed.
        transaction_id: number that the client chose.
        seconds: time since the client started.
        flags: bit 15: the client can't receive unicast yet.
        client_address: address that the client already uses (ciaddr).
        your_address: address for the client (yiaddr).
        server_address: server of the boot file (siaddr).
        relay_address: relay between client and server (giaddr).
        hardware_address: the client's (chaddr), six bytes for Ethernet.
        server_name: name of the server of the boot file.
        boot_file: name of the boot file.
        options: values by code, in the order of the message; parts of a split option are joined (RFC 3396).
    """

    operation: DhcpOperation
    hardware_type: int
    hops: int
    transaction_id: int
    seconds: int
    flags: int
    client_address: IPv4Address
    your_address: IPv4Address
    server_address: IPv4Address
    relay_address: IPv4Address
    hardware_address: bytes
    server_name: bytes
    boot_file: bytes
    options: Mapping[int, bytes]

    @property
    def mac(self) -> str:
        """Return the client's hardware address in lower case with colons."""
        return self.hardware_address.hex(":")

    @property
    def message_type(self) -> MessageType | None:
        """Return the type; None for BOOTP and unknown types."""
        value = self.options.get(Option.MESSAGE_TYPE, b"")
        return MessageType(value[0]) if len(value) == 1 and value[0] in set(MessageType) else None

    @property
    def architecture(self) -> int | None:
        """Return the first architecture of option 93; None without one."""
        value = self.options.get(Option.CLIENT_ARCHITECTURE, b"")
        return int.from_bytes(value[:2], "big") if len(value) >= 2 else None

    @property
    def vendor_class(self) -> bytes:
        """Return option 60, such as ``PXEClient:Arch:00007:UNDI:003016``."""
        return self.options.get(Option.VENDOR_CLASS, b"")

    @property
    def is_ipxe(self) -> bool:
        """Return whether iPXE sent it, and not the firmware's own PXE."""
        return (
            Option.IPXE_ENCAPSULATED in self.options
            or self.options.get(Option.USER_CLASS, b"")[-4:] == b"iPXE"
        )

    @property
    def uuid(self) -> str:
        """Return the SMBIOS UUID of option 97; empty without one.

        Firmware sends it as SMBIOS stores it: the first three groups are little-endian (RFC 4578, 2.3, as implemented).
        """
        value = self.options.get(Option.CLIENT_UUID, b"")
        if len(value) != 17 or value[0] != 0:
            return ""
        first, second, third = struct.unpack("<IHH", value[1:9])
        return f"{first:08x}-{second:04x}-{third:04x}-{value[9:11].hex()}-{value[11:17].hex()}"

    def address_option(self, option: Option) -> IPv4Address | None:
        """Return the address in an option; None without a valid one."""
        value = self.options.get(option, b"")
        return IPv4Address(value) if len(value) == 4 else None

    @property
    def boot_file_name(self) -> str:
        """Return the boot file of a reply: option 67, or the field of the header."""
        return self._text(Option.BOOT_FILE, self.boot_file)

    @property
    def next_server(self) -> str:
        """Return the server of a reply's boot file: siaddr, option 66 or the header's field; may be empty."""
        if self.server_address != UNSPECIFIED:
            return str(self.server_address)
        return self._text(Option.TFTP_SERVER_NAME, self.server_name)

    def _text(self, option: Option, field: bytes) -> str:
        value = self.options.get(option, field).partition(b"\0")[0]
        return "".join(char if char.isprintable() else "?" for char in value.decode("utf-8", "replace"))


def decode_dhcp_untrusted(data: bytes) -> DhcpMessage:
    """Decode one datagram.

    Raises:
        ProtocolError: it isn't a DHCP message.
    """
    if not OPTIONS_OFFSET <= len(data) <= MESSAGE_BYTES_MAX:
        raise ProtocolError(f"{len(data)} bytes aren't a DHCP message")
    fields = _HEADER.unpack_from(data)
    operation, hardware_type, address_bytes, hops, transaction_id, seconds, flags = fields[:7]
    if data[_HEADER.size : OPTIONS_OFFSET] != MAGIC_COOKIE:
        raise ProtocolError("no DHCP message: the magic cookie is missing")
    if operation not in set(DhcpOperation):
        raise ProtocolError(f"unknown operation {operation}")
    if not 1 <= address_bytes <= 16:
        raise ProtocolError(f"hardware address of {address_bytes} bytes")
    client, your, server, relay = (IPv4Address(field) for field in fields[7:11])
    hardware_address, server_name, boot_file = fields[11:]
    options = _decode_options_untrusted(data[OPTIONS_OFFSET:])
    overload = options.pop(Option.OVERLOAD, b"\0")
    # RFC 2131, 4.1: the fields hold options, first "file", then "sname".
    if overload in (b"\1", b"\3"):
        _merge(options, _decode_options_untrusted(boot_file))
        boot_file = b""
    if overload in (b"\2", b"\3"):
        _merge(options, _decode_options_untrusted(server_name))
        server_name = b""
    return DhcpMessage(
        DhcpOperation(operation),
        hardware_type,
        hops,
        transaction_id,
        seconds,
        flags,
        client,
        your,
        server,
        relay,
        hardware_address[:address_bytes],
        server_name.rstrip(b"\0"),
        boot_file.rstrip(b"\0"),
        options,
    )


def _decode_options_untrusted(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = count = 0
    while at < len(data) and data[at] != Option.END:
        if data[at] == Option.PAD:
            at += 1
            continue
        count += 1
        if at + 1 >= len(data) or at + 2 + data[at + 1] > len(data) or count > _OPTION_COUNT_MAX:
            raise ProtocolError(f"option {data[at]} is cut short")
        value = data[at + 2 : at + 2 + data[at + 1]]
        found[data[at]] = found.get(data[at], b"") + value
        at += 2 + data[at + 1]
    return found


def _merge(options: dict[int, bytes], more: Mapping[int, bytes]) -> None:
    for code, value in more.items():
        options[code] = options.get(code, b"") + value


def encode_dhcp(message: DhcpMessage) -> bytes:
    """Return the message as a datagram of at least 300 bytes.

    Option 53 is first, as some firmware expects; option 82 is last (RFC 3046, 2.1).
    """
    header = _HEADER.pack(
        message.operation,
        message.hardware_type,
        len(message.hardware_address),
        message.hops,
        message.transaction_id,
        message.seconds,
        message.flags,
        message.client_address.packed,
        message.your_address.packed,
        message.server_address.packed,
        message.relay_address.packed,
        message.hardware_address,
        message.server_name,
        message.boot_file,
    )
    order = {Option.MESSAGE_TYPE: -1, Option.RELAY_AGENT: 1}
    options = b"".join(
        _encode_option(code, message.options[code])
        for code in sorted(
            message.options,
            key=lambda code: order.get(Option(code) if code in set(Option) else Option.PAD, 0),
        )
    )
    return (header + MAGIC_COOKIE + options + bytes([Option.END])).ljust(MESSAGE_BYTES_MIN, b"\0")


def _encode_option(code: int, value: bytes) -> bytes:
    pieces = [value[at : at + _OPTION_BYTES_MAX] for at in range(0, len(value), _OPTION_BYTES_MAX)] or [b""]
    return b"".join(bytes([code, len(piece)]) + piece for piece in pieces)


def address_bytes(address: IPv4Address | str) -> bytes:
    """Return an address as the value of an option."""
    return ipaddress.IPv4Address(address).packed
