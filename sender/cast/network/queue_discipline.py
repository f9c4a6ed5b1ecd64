"""Read the queue disciplines of an interface from the kernel through rtnetlink(7)."""

from __future__ import annotations

import dataclasses
import socket
import struct
from typing import Final

# linux/netlink.h, linux/rtnetlink.h
_RTM_NEWQDISC: Final = 36
_RTM_GETQDISC: Final = 38
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST_DUMP: Final = 0x301
"""NLM_F_REQUEST | NLM_F_DUMP."""
_TCA_KIND: Final = 1
_TC_H_ROOT: Final = 0xFFFF_FFFF
_TC_H_INGRESS: Final = 0xFFFF_FFF1
"""Parent of ingress and clsact, which queue no datagrams."""

_MESSAGE: Final = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence, port."""
_TRAFFIC: Final = struct.Struct("=B3xiIII")
"""``struct tcmsg``: family, interface, handle, parent, info."""
_ATTRIBUTE: Final = struct.Struct("=HH")
"""``struct rtattr``: length, type."""
_ANSWER_BYTES_MAX: Final = 64 << 10
_ANSWER_TIMEOUT_S: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class QueueDiscipline:
    """One row of ``tc qdisc show``; ``parent`` is the kernel's handle of the parent class."""

    interface_index: int
    parent: int
    kind: str


def queue_disciplines(interface_index: int) -> tuple[str, ...]:
    """Return the kinds of an interface's queue disciplines, the root's first; needs no privilege.

    An interface with several hardware queues has ``mq`` as its root and one discipline per queue below it.

    Returns:
        Such as ``("mq", "fq", "fq")``; empty if the kernel doesn't answer.
    """
    request = _TRAFFIC.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    header = _MESSAGE.pack(_MESSAGE.size + len(request), _RTM_GETQDISC, _REQUEST_DUMP, 1, 0)
    found: list[QueueDiscipline] = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.settimeout(_ANSWER_TIMEOUT_S)
            sock.sendto(header + request, (0, 0))
            complete = False
            while not complete:
                rows, complete = parse_answer(sock.recv(_ANSWER_BYTES_MAX))
                found += rows
    except OSError:  # a container without rtnetlink, or with a system call filter
        return ()
    queueing = [
        row for row in found if row.interface_index == interface_index and row.parent != _TC_H_INGRESS
    ]
    queueing.sort(key=lambda row: row.parent != _TC_H_ROOT)
    return tuple(row.kind for row in queueing)


def parse_answer(answer: bytes) -> tuple[list[QueueDiscipline], bool]:
    """Parse one datagram of the kernel's answer; return its rows, and True if it is the last datagram."""
    found: list[QueueDiscipline] = []
    offset = 0
    while offset + _MESSAGE.size <= len(answer):
        length, message_type, _flags, _sequence, _port = _MESSAGE.unpack_from(answer, offset)
        if message_type in (_NLMSG_DONE, _NLMSG_ERROR) or length < _MESSAGE.size:
            return found, True
        if message_type == _RTM_NEWQDISC:
            start = offset + _MESSAGE.size
            _family, index, _handle, parent, _info = _TRAFFIC.unpack_from(answer, start)
            found.append(
                QueueDiscipline(index, parent, _kind(answer[start + _TRAFFIC.size : offset + length]))
            )
        offset += _aligned(length)
    return found, False


def _kind(attributes: bytes) -> str:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(attributes):
        length, attribute_type = _ATTRIBUTE.unpack_from(attributes, offset)
        if attribute_type == _TCA_KIND:
            return (
                attributes[offset + _ATTRIBUTE.size : offset + length]
                .rstrip(b"\0")
                .decode("ascii", "replace")
            )
        offset += max(_ATTRIBUTE.size, _aligned(length))
    return ""


def _aligned(length: int) -> int:
    return (length + 3) & ~3
