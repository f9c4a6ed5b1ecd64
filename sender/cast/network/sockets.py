"""Open the sender's sockets: data to the group, control and feedback from receivers, ANNOUNCEs of other senders."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import socket
import struct
from typing import Final

from protocol.constants import RECEIVER_COUNT_MAX, UDP_HEADER_BYTES
from protocol.errors import AddressInUseError, ConfigurationError, InterfaceError
from protocol.wire.messages import Announce
from sender.addresses import IpAddress
from sender.cast.network.interfaces import MulticastInterface

SEND_BUFFER_BYTES: Final = 1 << 20
"""Bytes that may wait in the kernel: 10 ms at 1 Gbit/s. More would silently overflow an interface's queue of 1000
packets; a full buffer makes the transmitter wait instead."""
SEND_TIMEOUT_S: Final = 0.2
"""Timeout of one send: an unplugged cable must not block the thread forever."""
FEEDBACK_BUFFER_BYTES: Final = 4 << 20
"""Room for 1024 receivers that answer a FLUSH at once, with 4 datagrams of up to 1.4 KB each as the kernel counts."""
PACING_HEADROOM: Final = 2.0
"""Kernel's pacing limit over the cast's rate: the kernel also counts lower headers, and late bursts catch up."""
_ANNOUNCE_BUFFER_BYTES: Final = 64 << 10
_PORT_TRIES: Final = 16

# linux/in.h, linux/in6.h, asm-generic/socket.h; not all of them are in Python's socket module.
_IP_MTU_DISCOVER: Final = 10
_IP_RECVERR: Final = 11
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_RECVERR: Final = 25
_PMTUDISC_DO: Final = 2
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_SO_ATTACH_FILTER: Final = 26
_SO_MAX_PACING_RATE: Final = 47

_TYPE_OFFSET: Final = UDP_HEADER_BYTES + 3
"""Offset of our message type in a socket filter, which sees datagrams from their UDP header on."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastSockets:
    """The open sockets of one cast.

    Attributes:
        data: UDP, connected to the group.
        control: TCP, listening.
        feedback: UDP, on the port number of ``control``.
        announcements: UDP, in the group; gets ANNOUNCEs only.
    """

    data: socket.socket
    control: socket.socket
    feedback: socket.socket
    announcements: socket.socket


def _ip_mreqn(group: IpAddress | None, address: IpAddress | None, index: int) -> bytes:
    """Pack ``struct ip_mreqn`` of ip(7)."""
    return struct.pack(
        "=4s4si", group.packed if group else bytes(4), address.packed if address else bytes(4), index
    )


def _set_buffer(sock: socket.socket, force_option: int, option: int, buffer_bytes: int) -> None:
    """Set a buffer size; without CAP_NET_ADMIN the system's limit applies."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, force_option, buffer_bytes)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)


def open_data_socket(
    interface: MulticastInterface, address: IpAddress, group: IpAddress, port: int, *, ttl: int
) -> socket.socket:
    """Open a blocking UDP socket connected to the group, for sending through ``interface`` from ``address``.

    Datagrams are never fragmented and are looped back to programs on this machine. Drops in the interface's own queue
    are reported as ENOBUFS (IP_RECVERR of ip(7)), so that they don't look like loss on the network.

    Raises:
        InterfaceError: the kernel refuses the interface or the group.
    """
    family = socket.AF_INET if group.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        timeout = struct.pack("@ll", 0, int(SEND_TIMEOUT_S * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        if family == socket.AF_INET:
            level = socket.IPPROTO_IP
            sock.setsockopt(level, _IP_MTU_DISCOVER, _PMTUDISC_DO)
            sock.setsockopt(level, _IP_RECVERR, 1)
            sock.setsockopt(level, socket.IP_MULTICAST_IF, _ip_mreqn(None, address, interface.index))
            sock.setsockopt(level, socket.IP_MULTICAST_TTL, ttl)
            sock.setsockopt(level, socket.IP_MULTICAST_LOOP, 1)
        else:
            level = socket.IPPROTO_IPV6
            sock.setsockopt(level, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
            sock.setsockopt(level, _IPV6_RECVERR, 1)
            sock.setsockopt(level, socket.IPV6_MULTICAST_IF, interface.index)
            sock.setsockopt(level, socket.IPV6_MULTICAST_HOPS, ttl)
            sock.setsockopt(level, socket.IPV6_MULTICAST_LOOP, 1)
        sock.bind(_endpoint(address, 0, interface))
        sock.connect(_endpoint(group, port, interface))
    except OSError as error:
        sock.close()
        advice = "check its address and state (ip address show), or choose another --interface or --group"
        if error.errno == errno.ENETUNREACH and group.version == 6:  # lo has no multicast route of its own
            advice = f"give it a route: ip -6 route add multicast ff00::/8 dev {interface.name} table local"
        raise InterfaceError(
            f"can't send to the group {group} through {interface.name} from {address}: {error.strerror}; {advice}"
        ) from error
    return sock


def limit_pacing_rate(sock: socket.socket, rate_bytes_per_s: float) -> None:
    """Let the fq queue discipline of an interface pace bursts (tc-fq(8), socket(7)); other disciplines ignore it.

    Pass the highest rate that the socket will ever have. For sockets other than TCP the kernel applies the lowest limit
    ever set (SO_MAX_PACING_RATE in net/core/sock.c), so a limit that followed the rate could only fall.
    """
    limit = int(PACING_HEADROOM * rate_bytes_per_s)
    # Every kernel takes 32 bits, and above 17 Gbit/s no limit is needed.
    if limit < 0xFFFF_FFFF:
        # A kernel without this option sends unpaced bursts; the transmitter paces anyway.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("=I", limit))


def bind_control_sockets(
    host: IpAddress | None, port: int, interface: MulticastInterface, address: IpAddress
) -> tuple[socket.socket, socket.socket]:
    """Bind the control API's TCP socket and the feedback's UDP socket, on the same port number.

    Args:
        host: address of the control API; None for ``address``.
        port: 0 for any free port.
        interface: the cast's interface.
        address: the sender's address, the destination of feedback.

    Raises:
        AddressInUseError: another program has the port.
        ConfigurationError: ``host`` isn't an address of this machine.
    """
    attempts_left = 1 if port else _PORT_TRIES
    while True:
        attempts_left -= 1
        tcp = _bind(socket.SOCK_STREAM, host or address, port, interface)
        try:
            udp = _bind(socket.SOCK_DGRAM, address, tcp.getsockname()[1], interface)
        except AddressInUseError:
            tcp.close()
            if attempts_left == 0:
                raise
            continue
        except ConfigurationError:
            tcp.close()
            raise
        _set_buffer(udp, _SO_RCVBUFFORCE, socket.SO_RCVBUF, FEEDBACK_BUFFER_BYTES)
        return tcp, udp


def open_announce_listener(interface: MulticastInterface, group: IpAddress, port: int) -> socket.socket:
    """Open a socket in the group that gets only ANNOUNCE datagrams, however fast the data of other casts arrives.

    Raises:
        InterfaceError: the kernel refuses to join the group there.
    """
    family = socket.AF_INET if group.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ANNOUNCE_BUFFER_BYTES)
        _accept_only_type(sock, Announce.WIRE_TYPE)
        sock.bind(_endpoint(group, port, interface))
        if family == socket.AF_INET:
            membership = _ip_mreqn(group, None, interface.index)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        else:
            membership = group.packed + struct.pack("@i", interface.index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
    except OSError as error:
        sock.close()
        raise InterfaceError(
            f"can't join the group {group} on {interface.name}: {error.strerror}; choose another --interface or --group"
        ) from error
    return sock


def _accept_only_type(sock: socket.socket, wire_type: int) -> None:
    """Attach a classic BPF program that drops other message types (Linux Documentation/networking/filter.rst)."""
    load_octet, jump_if_equal, accept = 0x30, 0x15, 0x06
    program = b"".join(
        struct.pack("=HBBI", code, if_true, if_false, operand)
        for code, if_true, if_false, operand in (
            (load_octet, 0, 0, _TYPE_OFFSET),
            (jump_if_equal, 0, 1, wire_type),
            (accept, 0, 0, 0xFFFF),
            (accept, 0, 0, 0),
        )
    )
    # The kernel copies the program during the call; the buffer must live until then.
    buffer = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    )


def _bind(kind: int, address: IpAddress, port: int, interface: MulticastInterface) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, kind)
    protocol = "TCP" if kind == socket.SOCK_STREAM else "UDP"
    try:
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:
            # A restarted sender mustn't wait until its predecessor's connections time out.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(_endpoint(address, port, interface))
        if kind == socket.SOCK_STREAM:
            sock.listen(RECEIVER_COUNT_MAX)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"{protocol} port {port} of {address} is in use, perhaps by another cast: stop that program "
                f"(ss -lp 'sport = :{port}' shows it) or choose another port with --control {address}:PORT"
            ) from error
        raise ConfigurationError(
            f"can't listen on {protocol} port {port} of {address}: {error.strerror}; choose an address of this "
            "machine and a port above 1023 with --control HOST:PORT"
        ) from error
    return sock


def _endpoint(
    address: IpAddress, port: int, interface: MulticastInterface
) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return the socket address; IPv6 link-local and multicast addresses need the interface as scope."""
    if address.version == 4:
        return str(address), port
    scoped = address.is_link_local or address.is_multicast
    return str(address), port, 0, interface.index if scoped else 0
