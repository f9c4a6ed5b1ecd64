"""The sender's sockets: data out to the group, control and feedback in, and an ear on the group's ANNOUNCEs."""

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
"""What may wait in the kernel: 10 ms at 1 Gbit/s. More would overflow an interface's queue of 1000 packets without a
word; a full buffer makes the transmitter wait instead."""
SEND_TIMEOUT_S: Final = 0.2
"""How long one send may wait for room: a cable pulled out must not hold the thread for ever."""
FEEDBACK_BUFFER_BYTES: Final = 4 << 20
"""A room of 1024 that answers one FLUSH at once: 4 datagrams each of up to 1.4 KB, at the kernel's accounting."""
PACING_HEADROOM: Final = 2.0
"""A limit of the kernel's above the cast's own: headers below UDP are counted there, and arrears have to be made up."""
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
"""Where a socket filter finds our message type: it sees the datagram from its UDP header on."""


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
    """``struct ip_mreqn`` of ip(7)."""
    return struct.pack(
        "=4s4si", group.packed if group else bytes(4), address.packed if address else bytes(4), index
    )


def _set_buffer(sock: socket.socket, force_option: int, option: int, buffer_bytes: int) -> None:
    """As large as asked for with CAP_NET_ADMIN, else as large as the system's limit lets it be."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, force_option, buffer_bytes)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)


def open_data_socket(
    interface: MulticastInterface, address: IpAddress, group: IpAddress, port: int, *, ttl: int
) -> socket.socket:
    """A blocking UDP socket connected to the group, which leaves by ``interface`` from ``address``.

    Datagrams are never fragmented, programs on this machine hear them too, and drops in the interface's own queue
    come back as ENOBUFS (IP_RECVERR of ip(7)) instead of passing for loss on the network.

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
    """Let the fq queue discipline space bursts that leave together, where an interface has it (tc-fq(8), socket(7)).

    Other disciplines ignore it. For the highest rate that the socket will ever have: except for TCP, which sets its
    own, the kernel takes the least of all limits that a socket was ever given (seen in TCP_INFO of Linux 6.18 before
    connect; SO_MAX_PACING_RATE in net/core/sock.c), so that one that followed a rate could only ever fall.
    """
    limit = int(PACING_HEADROOM * rate_bytes_per_s)
    # 32 bits are understood by every kernel, and beyond 17 Gbit/s nothing needs a limit.
    if limit < 0xFFFF_FFFF:
        # A kernel that refuses it sends just the same.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("=I", limit))


def bind_control_sockets(
    host: IpAddress | None, port: int, interface: MulticastInterface, address: IpAddress
) -> tuple[socket.socket, socket.socket]:
    """The control API's listening TCP socket and the feedback's UDP socket, on the same port number.

    Args:
        host: where the control API listens; None for ``address``.
        port: 0 for any that is free.
        interface: the cast's interface.
        address: the sender's address, to which receivers send feedback.

    Raises:
        AddressInUseError: another program has the port.
        ConfigurationError: ``host`` isn't an address of this machine.
    """
    tries_left = 1 if port else _PORT_TRIES
    while True:
        tries_left -= 1
        tcp = _bind(socket.SOCK_STREAM, host or address, port, interface)
        try:
            udp = _bind(socket.SOCK_DGRAM, address, tcp.getsockname()[1], interface)
        except AddressInUseError:
            tcp.close()
            if tries_left == 0:
                raise
            continue
        except ConfigurationError:
            tcp.close()
            raise
        _set_buffer(udp, _SO_RCVBUFFORCE, socket.SO_RCVBUF, FEEDBACK_BUFFER_BYTES)
        return tcp, udp


def open_announce_listener(interface: MulticastInterface, group: IpAddress, port: int) -> socket.socket:
    """A socket in the group that is given only ANNOUNCE datagrams, however fast other casts' data comes.

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
    """A classic BPF program (Linux Documentation/networking/filter.rst) that drops every other message type."""
    load_octet, jump_if_equal, give = 0x30, 0x15, 0x06
    program = b"".join(
        struct.pack("=HBBI", code, if_true, if_false, operand)
        for code, if_true, if_false, operand in (
            (load_octet, 0, 0, _TYPE_OFFSET),
            (jump_if_equal, 0, 1, wire_type),
            (give, 0, 0, 0xFFFF),
            (give, 0, 0, 0),
        )
    )
    # The kernel copies the program during the call, so the buffer need only live that long.
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
            # A sender started again at once mustn't wait for its predecessor's connections to time out.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(_endpoint(address, port, interface))
        if kind == socket.SOCK_STREAM:
            sock.listen(RECEIVER_COUNT_MAX)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"{protocol} port {port} of {address} is taken, perhaps by another cast: end that program "
                f"(ss -lp 'sport = :{port}' names it) or choose another port with --control {address}:PORT"
            ) from error
        raise ConfigurationError(
            f"can't listen on {protocol} port {port} of {address}: {error.strerror}; choose an address of this "
            "machine and a port above 1023 with --control HOST:PORT"
        ) from error
    return sock


def _endpoint(
    address: IpAddress, port: int, interface: MulticastInterface
) -> tuple[str, int] | tuple[str, int, int, int]:
    """The socket address; link-local IPv6 ones, unicast or multicast, exist once per interface."""
    if address.version == 4:
        return str(address), port
    scoped = address.is_link_local or address.is_multicast
    return str(address), port, 0, interface.index if scoped else 0
