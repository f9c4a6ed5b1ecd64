"""UDP datagrams in captured IPv4 packets. Pure."""

from __future__ import annotations

import dataclasses
import struct
from ipaddress import IPv4Address
from typing import Final

from protocol.errors import ProtocolError

UDP: Final = 17
_IP_HEADER_BYTES_MIN: Final = 20
_UDP_HEADER_BYTES: Final = 8
_MORE_FRAGMENTS_OR_OFFSET: Final = 0x3FFF


@dataclasses.dataclass(frozen=True, slots=True)
class UdpDatagram:
    """A datagram on the wire."""

    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int
    payload: bytes


def decode_packet_untrusted(data: bytes) -> UdpDatagram:
    """Decode an IPv4 packet.

    Raises:
        ProtocolError: it holds no whole UDP datagram.
    """
    if len(data) < _IP_HEADER_BYTES_MIN or data[0] >> 4 != 4:
        raise ProtocolError("not an IPv4 packet")
    header_bytes = (data[0] & 0x0F) * 4
    total_bytes, fragment = struct.unpack_from("!HxxH", data, 2)
    if header_bytes < _IP_HEADER_BYTES_MIN or not header_bytes + _UDP_HEADER_BYTES <= total_bytes <= len(
        data
    ):
        raise ProtocolError("IPv4 packet that is cut short")
    if data[9] != UDP or fragment & _MORE_FRAGMENTS_OR_OFFSET:
        raise ProtocolError("not a whole UDP datagram")
    source_port, destination_port, udp_bytes = struct.unpack_from("!HHH", data, header_bytes)
    if not _UDP_HEADER_BYTES <= udp_bytes <= total_bytes - header_bytes:
        raise ProtocolError("UDP datagram that is cut short")
    return UdpDatagram(
        IPv4Address(data[12:16]),
        source_port,
        IPv4Address(data[16:20]),
        destination_port,
        data[header_bytes + _UDP_HEADER_BYTES : header_bytes + udp_bytes],
    )
