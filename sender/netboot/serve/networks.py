"""The networks of a boot service: IPv4 addresses of this machine's interfaces."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from ipaddress import IPv4Interface

import psutil  # type: ignore[import-untyped]

from protocol.errors import InterfaceError
from sender.netboot.serve.boot_service import BootNetwork


def find_networks(names: Collection[str]) -> tuple[BootNetwork, ...]:
    """Return the networks of the interfaces ``names``, or of the only one that is up with an IPv4 address.

    Raises:
        InterfaceError: an interface is missing, down or without an address, or the choice isn't clear.
    """
    usable = _usable_networks()
    choices = ", ".join(f"{name} ({network.address})" for name, network in usable.items()) or "none"
    if not names:
        if len(usable) != 1:
            raise InterfaceError(
                f"choose the network of the machines with --interface; those with an IPv4 address: {choices}"
            )
        return tuple(usable.values())
    for name in names:
        if name not in usable:
            raise InterfaceError(
                f"{name!r} isn't a network interface that is up with an IPv4 address: bring it up (ip link set {name} "
                f"up; ip address add 192.0.2.1/24 dev {name}), or choose another with --interface: {choices}"
            )
    return tuple(usable[name] for name in dict.fromkeys(names))


def _usable_networks() -> dict[str, BootNetwork]:
    found = {}
    stats = psutil.net_if_stats()
    for name, entries in psutil.net_if_addrs().items():
        first = next((entry for entry in entries if entry.family == socket.AF_INET and entry.netmask), None)
        if first is None or name not in stats or not stats[name].isup:
            continue
        address = IPv4Interface(f"{first.address}/{first.netmask}")
        if not ipaddress.ip_address(first.address).is_loopback:
            found[name] = BootNetwork(name, address, stats[name].mtu)
    return found
