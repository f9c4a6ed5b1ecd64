"""Addresses as operators write them, on the command line and in the configuration."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from protocol.errors import ConfigurationError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_group(text: str) -> IpAddress:
    """Parse a multicast address.

    Raises:
        ConfigurationError: ``text`` isn't one.
    """
    advice = "choose one in 239.0.0.0/8, such as 239.255.68.67, or in ff12::/16 with --group"
    try:
        group = ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigurationError(f"the group {text!r} isn't an IP address: {advice}") from error
    if not group.is_multicast:
        raise ConfigurationError(f"the group {text} isn't a multicast address: {advice}")
    return group


def parse_endpoint(text: str, default_port: int) -> tuple[IpAddress | None, int]:
    """Parse ``HOST:PORT``, ``HOST``, ``:PORT`` or ``[IPV6]:PORT``.

    Returns:
        Address and port; the address is None without HOST.

    Raises:
        ConfigurationError: ``text`` isn't of that form.
    """
    advice = (
        f"write HOST:PORT with a numeric address, such as 10.0.0.1:{default_port} or [fd00::1]:{default_port}"
    )
    host, colon, port_text = text.rpartition(":")
    if text.endswith("]") or not colon:
        host, port_text = text, ""
    host = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host) if host else None
        port = int(port_text) if port_text else default_port
    except ValueError as error:
        raise ConfigurationError(f"{text!r} isn't a valid address: {advice}") from error
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"{text!r}: the port must be from 0 to 65535; {advice}")
    return address, port


def source_network(address: str) -> str:
    """Return the address whose connections and failures are counted together: an IPv6 host has a whole /64."""
    try:
        parsed = _unmapped(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return ""
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)


def contains_address(networks: Iterable[IpNetwork], address: str) -> bool:
    """Return whether ``address`` is in one of ``networks``."""
    try:
        parsed = _unmapped(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return False
    return any(parsed in network for network in networks)


def _unmapped(address: IpAddress) -> IpAddress:
    """Return the IPv4 address in ::ffff:0:0/96, as a dual-stack listener shows it."""
    return getattr(address, "ipv4_mapped", None) or address
