"""Ethernet frames of a cast as another machine on the network sees and sends them, a member of the group or not."""

from __future__ import annotations

import dataclasses
import socket
import struct
from collections.abc import Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from protocol.constants import DATA_HEADER_BYTES, IPV4_HEADER_BYTES, UDP_HEADER_BYTES, WIRE_MAGIC
from tests.support.network.lab import INTERFACE

_SO_RCVBUFFORCE = 33  # Python has no name for it
_ETHERTYPE_ALL = 0x0003
_ETHERTYPE_IPV4 = 0x0800
_ETHERNET = struct.Struct(">6s6sH")
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_UDP = struct.Struct(">HHHH")
_PAYLOAD_AT = _ETHERNET.size + IPV4_HEADER_BYTES + UDP_HEADER_BYTES
_FRAME_BYTES_MAX = 1 << 17
"""The kernel passes super-datagrams of up to 64 KiB as one frame."""
SYMBOL_TYPE = 0x01


@dataclasses.dataclass(frozen=True, slots=True)
class CastFrame:
    """A captured frame: its addresses, and the datagrams of the cast in it."""

    source: bytes
    destination: bytes
    group: bytes
    source_port: int
    port: int
    payload: bytes

    @classmethod
    def parse(cls, frame: bytes) -> Self | None:
        """Return a diskcast datagram, or a super-datagram, to a multicast group; None for any other frame."""
        if len(frame) < _PAYLOAD_AT + 4:
            return None
        destination, _, ethertype = _ETHERNET.unpack_from(frame)
        if ethertype != _ETHERTYPE_IPV4 or not destination[0] & 1:
            return None
        fields = _IPV4.unpack_from(frame, _ETHERNET.size)
        source_port, port, _, _ = _UDP.unpack_from(frame, _ETHERNET.size + IPV4_HEADER_BYTES)
        payload = frame[_PAYLOAD_AT:]
        if fields[6] != socket.IPPROTO_UDP or int.from_bytes(payload[:2]) != WIRE_MAGIC:
            return None
        return cls(fields[8], destination, fields[9], source_port, port, payload)

    @property
    def is_data(self) -> bool:
        """Return whether it holds symbols."""
        return self.payload[3] == SYMBOL_TYPE

    def symbols(self, symbol_bytes: int) -> NDArray[np.uint8]:
        """Return its data datagrams, ``uint8[n, 32 + symbol_bytes]``."""
        size = DATA_HEADER_BYTES + symbol_bytes
        whole = self.payload[: len(self.payload) // size * size]
        return np.frombuffer(whole, np.uint8).reshape(-1, size)

    def around(self, datagram: bytes, hardware_address: bytes) -> bytes:
        """Return a frame with another datagram in the sender's name, from this machine's network card."""
        length = UDP_HEADER_BYTES + len(datagram)
        head = _IPV4.pack(
            0x45, 0, IPV4_HEADER_BYTES + length, 0, 0x4000, 1, socket.IPPROTO_UDP, 0, self.source, self.group
        )
        total = sum(struct.unpack(">10H", head))
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        head = head[:10] + checksum.to_bytes(2) + head[12:]
        # A UDP checksum of 0 is none (RFC 768).
        udp = _UDP.pack(self.source_port, self.port, length, 0)
        return _ETHERNET.pack(self.destination, hardware_address, _ETHERTYPE_IPV4) + head + udp + datagram


class RawSocket:
    """A packet socket on the namespace's interface."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((INTERFACE, _ETHERTYPE_ALL))
        self.hardware_address: bytes = self._socket.getsockname()[4]

    def frames(self) -> Iterator[CastFrame]:
        """Yield the cast's frames that others send, for ever."""
        while True:
            frame, (_, _, kind, *_) = self._socket.recvfrom(_FRAME_BYTES_MAX)
            if kind != socket.PACKET_OUTGOING and (found := CastFrame.parse(frame)) is not None:
                yield found

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        self._socket.send(frame)
