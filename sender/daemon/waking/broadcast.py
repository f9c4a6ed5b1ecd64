"""Broadcast of magic packets from every network interface of the daemon."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import struct
from collections.abc import Sequence
from typing import Final

from sender.cast.network.interfaces import MulticastInterface, list_interfaces
from sender.daemon.waking.magic_packet import MAGIC_PACKET_PORT, magic_packet

_IP_PKTINFO: Final = 8
"""ip(7); the interface of one datagram. Unlike SO_BINDTODEVICE it needs no capability, and unlike a bound address it
chooses the way of a broadcast."""


@dataclasses.dataclass(frozen=True, slots=True)
class BroadcastReport:
    """Interfaces that packets left by, and the reason if there are none."""

    interfaces: tuple[str, ...]
    problem: str = ""


def broadcast_magic_packets(macs: Sequence[str]) -> BroadcastReport:
    """Send one magic packet for each hardware address from each interface that has an IPv4 address.

    An interface that is full or broken is skipped; the packets are repeated anyway.
    """
    usable = [item for item in list_interfaces().values() if item.up and _addresses(item)]
    if not usable:
        return BroadcastReport((), "no network interface is up with an IPv4 address")
    used, reasons = [], []
    for interface in usable:
        try:
            _send(interface, macs)
        except OSError as error:
            reasons.append(f"{interface.name}: {error.strerror}")
        else:
            used.append(interface.name)
    return BroadcastReport(tuple(used), "" if used else f"no packet could be sent ({'; '.join(reasons)})")


def _addresses(interface: MulticastInterface) -> list[str]:
    return [
        str(address) for address in interface.addresses if address.version == 4 and not address.is_loopback
    ]


def _send(interface: MulticastInterface, macs: Sequence[str]) -> None:
    source = socket.inet_aton(_addresses(interface)[0])
    control = [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("@i4s4s", interface.index, source, bytes(4)))]
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for mac in macs:
            sock.sendmsg([magic_packet(mac)], control, 0, ("255.255.255.255", MAGIC_PACKET_PORT))
