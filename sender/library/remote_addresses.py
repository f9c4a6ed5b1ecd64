"""Servers that a URL may lead to: without limits, a user who may add images could explore the daemon's network.

The servers of the configuration may have any address. A URL that was added through the API leads to public addresses
only, judged when a connection is made: a name can have another address then than when it was checked (DNS rebinding).
Redirects aren't followed at all.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
from collections.abc import Iterable
from typing import Any, Final

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
"""RFC 6052: the last four bytes are an IPv4 address."""
_PORTS: Final = {"http": 80, "https": 443}


class PrivateAddressError(OSError):
    """The server's address belongs to this machine or a private network."""


class RedirectedError(OSError):
    """The server's answer names another URL."""


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL; a URL that isn't valid has no host."""
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", "", None


def origins_of(urls: Iterable[str]) -> frozenset[tuple[str, str, int | None]]:
    """Return the origins of URLs."""
    return frozenset(map(origin_of, urls))


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the Internet."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        embedded = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in _NAT64:
            embedded = ipaddress.IPv4Address(parsed.packed[-4:])
        if embedded is not None:
            return is_public(str(embedded))
    return parsed.is_global and not parsed.is_multicast


def open_public_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an address of ``getaddrinfo``, as aiohttp's connector wants it.

    Raises:
        PrivateAddressError: the address isn't public.
    """
    family, kind, protocol, _name, target = address
    if not is_public(target[0]):
        raise PrivateAddressError("the address isn't public")
    return socket.socket(family, kind, protocol)
