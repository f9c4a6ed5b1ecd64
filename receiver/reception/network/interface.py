"""Lookup of the network interface that a cast arrives on."""

from __future__ import annotations

import dataclasses
import socket

import psutil  # type: ignore[import-untyped]

from protocol.errors import InterfaceError


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiveInterface:
    """A network interface that is up and has an address of the group's family."""

    name: str
    index: int
    address: str
    """First address of the group's family, without a scope."""
    mtu_bytes: int


def find_interface(name: str, group: str) -> ReceiveInterface:
    """Return the interface called ``name`` if it can receive ``group``.

    Args:
        name: name as in ``ip link``.
        group: multicast address; its family decides which address the interface must have.

    Raises:
        InterfaceError: there is no such interface, it is down, or it has no address of the family.
    """
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    addresses = psutil.net_if_addrs()
    states = psutil.net_if_stats()
    require_interface(name)
    if not states[name].isup:
        raise InterfaceError(f"interface {name} is down: run ip link set dev {name} up")
    own = addresses.get(name, [])
    usable = [entry.address.partition("%")[0] for entry in own if entry.family == family]
    if not usable:
        version = "IPv6" if family == socket.AF_INET6 else "IPv4"
        raise InterfaceError(
            f"interface {name} has no {version} address, which group {group} needs: "
            f"add one with ip address add, or choose another group with --group"
        )
    try:
        index = socket.if_nametoindex(name)
    except OSError as error:
        raise InterfaceError(
            f"interface {name} disappeared: {error.strerror}; check its driver and cable"
        ) from error
    return ReceiveInterface(name, index, usable[0], states[name].mtu)


def require_interface(name: str) -> None:
    """Raise unless an interface called ``name`` exists, up or down.

    Raises:
        InterfaceError: there is no such interface.
    """
    addresses = psutil.net_if_addrs()
    if name not in addresses and name not in psutil.net_if_stats():
        raise InterfaceError(
            f"no interface {name!r} on this machine: choose one of {', '.join(_listing(addresses))}"
        )


def _listing(addresses: dict[str, list[psutil._common.snicaddr]]) -> list[str]:
    """Return a text such as ``lo (127.0.0.1)`` for each interface, with its first IPv4 address if it has one."""
    listing = []
    for name in sorted(addresses):
        ipv4 = [entry.address for entry in addresses[name] if entry.family == socket.AF_INET]
        listing.append(f"{name} ({ipv4[0]})" if ipv4 else name)
    return listing
