"""The data socket: joined to the cast's multicast group, read in batches.

For each feature the best variant is tried first, with a fallback if the kernel refuses it: source-specific join, then
any-source; recvmmsg on a socket with UDP_GRO, then without, then one recv per datagram; the kernel's time stamps, then
none; SO_RCVBUFFORCE, then SO_RCVBUF.
"""

from __future__ import annotations

import enum
import errno
import ipaddress
import socket
import struct
from typing import NamedTuple

import trio

from protocol.constants import (
    ETHERNET_MTU_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    MIB,
    RATE_BYTES_PER_S_MAX,
    UDP_HEADER_BYTES,
)
from protocol.errors import AddressInUseError, InterfaceError
from receiver.reception.network.interface import ReceiveInterface
from receiver.reception.network.recvmmsg import DatagramBatch, MessageSlab, PlainSlab, SlabCounters

RECEIVE_BUFFER_BYTES = 16 * MIB
"""Requested receive buffer, which the kernel doubles for its overhead. It holds a tenth of a second at 2.4 Gbit/s,
enough for the pauses of a busy machine. A deeper queue would only delay the answers to FLUSH."""

POLL_INTERVAL_MAX_S = 0.008
"""Longest interval between polls. While data flows the queue is polled instead of read at every arrival, since each
poll costs 0.2 ms of processor time. Longer intervals would show in the group's round-trip time."""

POLL_INTERVAL_MIN_S = 0.002
"""Shortest interval worth its own cost; a queue that fills sooner is polled without a pause."""

# Linux values that the socket module doesn't name: <linux/in.h>, <linux/in6.h>, <linux/udp.h>, <asm/socket.h>.
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_MCAST_JOIN_GROUP = 42
_MCAST_JOIN_SOURCE_GROUP = 46
_MCAST_LEAVE_SOURCE_GROUP = 47
_SOL_UDP = 17
_UDP_GRO = 104
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_SO_MEMINFO = 55
_SOCKADDR_STORAGE_BYTES = 128

_MEMINFO = struct.Struct("=9I")
_MEMINFO_QUEUED, _MEMINFO_BUFFER, _MEMINFO_DROPS = 0, 1, 8


class ReceiveMode(enum.StrEnum):
    """System call and offload that read datagrams, the best first."""

    GRO = "recvmmsg with UDP_GRO"
    MMSG = "recvmmsg"
    PLAIN = "recv"


class SocketMemory(NamedTuple):
    """Fill and drops of the socket's queue (SO_MEMINFO)."""

    queued_bytes: int
    buffer_bytes: int
    drop_count: int
    """Messages dropped because the queue was full; datagrams coalesced by the kernel count as one."""


def join_group(
    interface: ReceiveInterface, group: str, port: int, *, source: str | None
) -> tuple[socket.socket, bool]:
    """Open a non-blocking socket joined to ``group`` on ``interface`` and bound to the group's address and port.

    Binding to the group's address keeps other traffic to the port away. Several agents on one machine can share a
    group and port: each gets every datagram.

    Args:
        interface: the interface to join on.
        group: multicast address.
        port: UDP port.
        source: the sender's address for a source-specific join (RFC 4607's filter, on any group); None for any source.

    Returns:
        The socket, and whether only ``source`` is heard.

    Raises:
        InterfaceError: the interface can't join.
        AddressInUseError: another program uses the port exclusively.
    """
    ipv6 = ":" in group
    level = socket.IPPROTO_IPV6 if ipv6 else socket.IPPROTO_IP
    sock = socket.socket(
        socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    )
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Without this the socket would also get the groups that other sockets of this machine have joined.
        sock.setsockopt(level, _IPV6_MULTICAST_ALL if ipv6 else _IP_MULTICAST_ALL, 0)
        sock.bind((group, port, 0, interface.index) if ipv6 else (group, port))
        source_specific = source is not None and _join_source(sock, level, interface, group, source)
        if not source_specific:
            request = _group_request(interface.index, group)
            sock.setsockopt(level, _MCAST_JOIN_GROUP, request)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"UDP port {port} of group {group} is in use by another program that doesn't share it: "
                f"find it with ss -lunp, or choose another port with --port on both sides"
            ) from error
        raise InterfaceError(
            f"interface {interface.name} can't join group {group} port {port}: {error.strerror}; "
            f"run diskcast-agent doctor --interface {interface.name}"
        ) from error
    return sock, source_specific


def _join_source(
    sock: socket.socket, level: int, interface: ReceiveInterface, group: str, source: str
) -> bool:
    request = _group_request(interface.index, group) + _sockaddr_storage(source)
    try:
        sock.setsockopt(level, _MCAST_JOIN_SOURCE_GROUP, request)
    except OSError:  # the kernel has no source filters, or too many are in use: fall back to any source
        return False
    return True


def _group_request(interface_index: int, group: str) -> bytes:
    """Return a ``struct group_req`` (RFC 3678 section 5.1); with the source appended it is a ``group_source_req``."""
    # sockaddr_storage is aligned like a pointer.
    return struct.pack("@I0P", interface_index) + _sockaddr_storage(group)


def _sockaddr_storage(address: str) -> bytes:
    packed = ipaddress.ip_address(address).packed
    if len(packed) == 4:
        sockaddr = struct.pack("=HH", socket.AF_INET, 0) + packed
    else:
        sockaddr = struct.pack("=HHI", socket.AF_INET6, 0, 0) + packed
    return sockaddr.ljust(_SOCKADDR_STORAGE_BYTES, b"\0")


class DataSocket:
    """A joined socket with a large buffer, and the slab that its batches land in."""

    def __init__(
        self,
        interface: ReceiveInterface,
        group: str,
        port: int,
        *,
        source: str | None,
        frame_bytes: int,
        best_mode: ReceiveMode = ReceiveMode.GRO,
    ) -> None:
        """Join the group, and choose the best mode that the kernel supports.

        Args:
            interface: the interface to join on.
            group: multicast address.
            port: UDP port.
            source: the sender's address for a source-specific join; None for any source.
            frame_bytes: length of a data datagram: header and symbol.
            best_mode: the best mode to try.

        Raises:
            InterfaceError: the interface can't join.
            AddressInUseError: another program uses the port exclusively.
        """
        self.interface = interface
        self._group = group
        self._source = source
        self._frame_bytes = frame_bytes
        self.socket, self.source_specific = join_group(interface, group, port, source=source)
        self._enlarge_buffer()
        self.mode, self._slab = self._choose_mode(frame_bytes, best_mode)
        # At the highest rate a small queue fills sooner; the kernel's overhead takes up to half of it.
        fills_in_s = self.memory().buffer_bytes / 2 / RATE_BYTES_PER_S_MAX
        self.poll_interval_max_s = (
            min(fills_in_s, POLL_INTERVAL_MAX_S) if fills_in_s > POLL_INTERVAL_MIN_S else 0.0
        )

    def _enlarge_buffer(self) -> None:
        for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES)
            except PermissionError:  # only root may exceed net.core.rmem_max
                continue
            return

    def _choose_mode(
        self, frame_bytes: int, best_mode: ReceiveMode
    ) -> tuple[ReceiveMode, MessageSlab | PlainSlab]:
        if best_mode is ReceiveMode.PLAIN:
            return ReceiveMode.PLAIN, PlainSlab(frame_bytes)
        coalesced = False
        if best_mode is ReceiveMode.GRO:
            try:
                self.socket.setsockopt(_SOL_UDP, _UDP_GRO, 1)
                coalesced = True
            except OSError:  # before Linux 5.0
                coalesced = False
        try:
            slab = MessageSlab(frame_bytes, coalesced=coalesced, stamped=self._has_time_stamps())
        except OSError:  # no recvmmsg in the C library
            if coalesced:
                self.socket.setsockopt(_SOL_UDP, _UDP_GRO, 0)
            return ReceiveMode.PLAIN, PlainSlab(frame_bytes)
        return ReceiveMode.GRO if coalesced else ReceiveMode.MMSG, slab

    def _has_time_stamps(self) -> bool:
        """Enable the kernel's time stamps (socket(7)); return whether it has them."""
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        except OSError:  # 32-bit kernels use another option number
            return False
        return True

    @property
    def counters(self) -> SlabCounters:
        """Counters of datagrams that were dropped before they reached a batch."""
        return self._slab.counters

    def receive_batch(self) -> DatagramBatch | None:
        """Return the waiting datagrams, up to one batch, valid until the next call; None if there are none.

        Raises:
            InterfaceError: the socket failed.
        """
        try:
            return self._slab.receive(self.socket)
        except OSError as error:
            raise InterfaceError(
                f"cannot receive on interface {self.interface.name}: {error.strerror}; "
                f"run diskcast-agent doctor --interface {self.interface.name}"
            ) from error

    def require_mtu(self) -> None:
        """Raise unless the interface can carry the cast's datagrams.

        Raises:
            InterfaceError: its MTU is that of a smaller link than the sender's.
        """
        ip_header_bytes = IPV6_HEADER_BYTES if ":" in self._group else IPV4_HEADER_BYTES
        packet_bytes = self._frame_bytes + UDP_HEADER_BYTES + ip_header_bytes
        if packet_bytes > max(self.interface.mtu_bytes, ETHERNET_MTU_BYTES):
            raise InterfaceError(
                f"the MTU of {self.interface.name} is {self.interface.mtu_bytes}, and the sender's packets have "
                f"{packet_bytes} bytes: set the same MTU on all machines and switches, or send with a smaller "
                "--symbol-size"
            )

    def accept_any_source(self) -> None:
        """Stop filtering by source: the datagrams may come from an address other than the announced one.

        Raises:
            InterfaceError: the interface can't join.
        """
        if not self.source_specific or self._source is None:
            return
        level = socket.IPPROTO_IPV6 if ":" in self._group else socket.IPPROTO_IP
        request = _group_request(self.interface.index, self._group)
        try:
            self.socket.setsockopt(
                level, _MCAST_LEAVE_SOURCE_GROUP, request + _sockaddr_storage(self._source)
            )
            self.socket.setsockopt(level, _MCAST_JOIN_GROUP, request)
        except OSError as error:
            raise InterfaceError(
                f"interface {self.interface.name} can't rejoin group {self._group}: {error.strerror}; "
                f"run diskcast-agent doctor --interface {self.interface.name}"
            ) from error
        self.source_specific = False

    async def wait_readable(self) -> None:
        """Wait until a datagram is in the queue."""
        await trio.lowlevel.wait_readable(self.socket)

    def memory(self) -> SocketMemory:
        """Return the queue's fill and drop count from the kernel; takes 1 µs."""
        info = _MEMINFO.unpack(self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
        return SocketMemory(info[_MEMINFO_QUEUED], info[_MEMINFO_BUFFER], info[_MEMINFO_DROPS])

    def close(self) -> None:
        """Leave the group and close the socket; waiting tasks are woken."""
        trio.lowlevel.notify_closing(self.socket)
        self.socket.close()
