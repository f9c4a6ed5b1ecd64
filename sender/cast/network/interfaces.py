"""Find network interfaces and derive the symbol size from their MTU."""

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
"""Up to Ethernet's usual size, symbols use every byte: a 32-byte step would cost 2 % of each datagram."""
_SYMBOL_ALIGNMENT_BYTES = 32
"""Width of the largest vector that the FEC kernels load."""


@dataclasses.dataclass(frozen=True, slots=True)
class MulticastInterface:
    """A network interface of this machine.

    Attributes:
        name: as ``ip link`` shows it.
        index: the kernel's number.
        up: True if the interface is up.
        mtu_bytes: largest IP packet.
        addresses: in the kernel's order, the primary one first; without scope.
    """

    name: str
    index: int
    up: bool
    mtu_bytes: int
    addresses: tuple[IpAddress, ...]

    def address_for(self, group: IpAddress) -> IpAddress:
        """Return the source address for ``group``: of its family, link-local only if there is no other.

        Raises:
            InterfaceError: the interface has no such address.
        """
        family = [address for address in self.addresses if address.version == group.version]
        if not family:
            raise InterfaceError(
                f"interface {self.name} has no IPv{group.version} address, which the group {group} needs: add one "
                f"(ip address add ADDRESS/LENGTH dev {self.name}) or choose a group of the other family with --group"
            )
        return min(family, key=lambda address: address.is_link_local)


def list_interfaces() -> dict[str, MulticastInterface]:
    """Return the interfaces of this network namespace by name."""
    stats = psutil.net_if_stats()
    addresses = psutil.net_if_addrs()
    found = {}
    for index, name in socket.if_nameindex():
        if name not in stats:  # removed in between, or hidden
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
    """Return the interface ``name``, which exists and is up.

    Raises:
        InterfaceError: it is missing or down; the message lists usable ones.
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
    """Return the largest useful symbol size of an interface: 1440 bytes for IPv4 at the usual MTU of 1500.

    Raises:
        InterfaceError: its MTU is too small for any symbol.
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
    """Return the symbol size of a cast: ``wanted_bytes`` if it fits, or the largest useful one for None.

    Raises:
        ConfigurationError: ``wanted_bytes`` is out of range for this interface.
        InterfaceError: as :func:`symbol_bytes_for`.
    """
    largest_bytes = symbol_bytes_for(interface, ip_version)
    if wanted_bytes is None:
        return largest_bytes
    if not SYMBOL_BYTES_MIN <= wanted_bytes <= largest_bytes:
        raise ConfigurationError(
            f"a symbol size of {wanted_bytes} bytes doesn't fit {interface.name} with an MTU of "
            f"{interface.mtu_bytes}: choose --symbol-size from {SYMBOL_BYTES_MIN} to {largest_bytes}"
        )
    return wanted_bytes
