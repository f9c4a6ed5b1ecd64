"""What the operator names on the command line, made sure of: interface, group, symbol size, endpoint."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket

import psutil  # type: ignore[import-untyped]

from protocol.constants import (
    DATA_HEADER_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    SYMBOL_BYTES_MAX,
    SYMBOL_BYTES_MIN,
    UDP_HEADER_BYTES,
)
from protocol.errors import ConfigurationError, InterfaceError
from sender.addresses import IpAddress

_ALIGNED_ABOVE_BYTES = 1440
"""Symbols up to Ethernet's usual size are used to the last byte: a 32-byte step would cost 2 % of every datagram."""
_SYMBOL_ALIGNMENT_BYTES = 32
"""The widest vector that the FEC kernels load."""


@dataclasses.dataclass(frozen=True, slots=True)
class MulticastInterface:
    """One network interface of this machine.

    Attributes:
        name: as ``ip link`` shows it.
        index: the kernel's number of it.
        up: whether it carries datagrams.
        mtu_bytes: largest IP packet.
        addresses: in the kernel's order, the primary one first; without scope.
    """

    name: str
    index: int
    up: bool
    mtu_bytes: int
    addresses: tuple[IpAddress, ...]

    def address_for(self, group: IpAddress) -> IpAddress:
        """The address to send to ``group`` from: of its family, link-local only if there is no other.

        Raises:
            InterfaceError: there is none.
        """
        family = [address for address in self.addresses if address.version == group.version]
        if not family:
            raise InterfaceError(
                f"interface {self.name} has no IPv{group.version} address, which the group {group} needs: give it one "
                f"(ip address add ADDRESS/LENGTH dev {self.name}) or choose a group of the other family"
            )
        return min(family, key=lambda address: address.is_link_local)


def list_interfaces() -> dict[str, MulticastInterface]:
    """Every interface of this machine (of this network namespace) by name."""
    stats = psutil.net_if_stats()
    addresses = psutil.net_if_addrs()
    found = {}
    for index, name in socket.if_nameindex():
        if name not in stats:  # removed since, or hidden
            continue
        texts = [
            entry.address.partition("%")[0]
            for entry in addresses.get(name, ())
            if entry.family in (socket.AF_INET, socket.AF_INET6)
        ]
        found[name] = MulticastInterface(
            name=name,
            index=index,
            up=stats[name].isup,
            mtu_bytes=stats[name].mtu,
            addresses=tuple(ipaddress.ip_address(text) for text in texts),
        )
    return found


def find_interface(name: str) -> MulticastInterface:
    """The interface ``name``, which exists and is up.

    Raises:
        InterfaceError: it doesn't or isn't; the message lists those that would do.
    """
    interfaces = list_interfaces()
    usable = ", ".join(
        f"{other.name} ({other.addresses[0]})"
        for other in interfaces.values()
        if other.up and other.addresses and other.name != name
    )
    choice = (
        f"choose one with --interface: {usable}" if usable else "no other interface is up with an address"
    )
    interface = interfaces.get(name)
    if interface is None:
        raise InterfaceError(f"there is no network interface {name!r}: {choice}")
    if not interface.up:
        raise InterfaceError(
            f"network interface {name} is down: bring it up (ip link set {name} up), or {choice}"
        )
    return interface


def symbol_bytes_for(interface: MulticastInterface, ip_version: int) -> int:
    """The largest useful symbol on this interface: 1440 bytes at the usual MTU of 1500 and IPv4.

    Raises:
        InterfaceError: its MTU is too small for a datagram of ours.
    """
    header_bytes = IPV4_HEADER_BYTES if ip_version == 4 else IPV6_HEADER_BYTES
    room_bytes = interface.mtu_bytes - header_bytes - UDP_HEADER_BYTES - DATA_HEADER_BYTES
    if room_bytes < SYMBOL_BYTES_MIN:
        raise InterfaceError(
            f"the MTU of {interface.name} is {interface.mtu_bytes} bytes, too small for a symbol of "
            f"{SYMBOL_BYTES_MIN} bytes: raise it (ip link set {interface.name} mtu 1500)"
        )
    if room_bytes > _ALIGNED_ABOVE_BYTES:
        room_bytes -= room_bytes % _SYMBOL_ALIGNMENT_BYTES
    return min(room_bytes, SYMBOL_BYTES_MAX)


def choose_symbol_bytes(interface: MulticastInterface, ip_version: int, wanted_bytes: int | None) -> int:
    """The symbol size of a cast: what the operator wants if it fits, else the largest useful.

    Raises:
        ConfigurationError: ``wanted_bytes`` is out of range for this interface.
        InterfaceError: as :func:`symbol_bytes_for`.
    """
    largest_bytes = symbol_bytes_for(interface, ip_version)
    if wanted_bytes is None:
        return largest_bytes
    if not SYMBOL_BYTES_MIN <= wanted_bytes <= largest_bytes:
        raise ConfigurationError(
            f"a symbol size of {wanted_bytes} bytes can't be used on {interface.name}, whose MTU is "
            f"{interface.mtu_bytes}: choose --symbol-size from {SYMBOL_BYTES_MIN} to {largest_bytes}"
        )
    return wanted_bytes
