"""Real multicast on the loopback interface, without privileges."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self

_SOL_UDP = 17
_UDP_SEGMENT = 103
_SO_RCVBUFFORCE = 33

GROUP_IPV4 = "239.255.68.99"


def roomy(sock: socket.socket) -> None:
    """Enlarge the receive buffer for a busy machine that reads a test's datagrams late."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
    except PermissionError:  # the system's limit applies then
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)


class LoopbackSender:
    """A sender to a group through ``lo`` from 127.0.0.1."""

    def __init__(self, group: str, port: int, source: str = "127.0.0.1") -> None:
        self._destination = (group, port)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        request = struct.pack("@4s4si", bytes(4), socket.inet_aton(source), socket.if_nametoindex("lo"))
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, datagram: bytes) -> None:
        """Send one datagram."""
        self._socket.sendto(datagram, self._destination)

    def send_segmented(self, data: bytes, segment_bytes: int) -> None:
        """Send a super-datagram that the kernel splits into datagrams of ``segment_bytes``; the last may be shorter."""
        ancillary = [(_SOL_UDP, _UDP_SEGMENT, struct.pack("@H", segment_bytes))]
        self._socket.sendmsg([data], ancillary, 0, self._destination)
