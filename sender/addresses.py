"""Addresses as operators write them, on the command line and in the configuration."""

from __future__ import annotations

import ipaddress

from protocol.errors import ConfigurationError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_group(text: str) -> IpAddress:
    """A multicast address.

    Raises:
        ConfigurationError: ``text`` isn't one.
    """
    advice = "use one of 239.0.0.0/8 (for example 239.255.68.67) or of ff12::/16 with --group"
    try:
        group = ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigurationError(f"the group {text!r} isn't an IP address: {advice}") from error
    if not group.is_multicast:
        raise ConfigurationError(f"the group {text} isn't a multicast address: {advice}")
    return group


def parse_endpoint(text: str, default_port: int) -> tuple[IpAddress | None, int]:
    """``HOST:PORT``, ``HOST``, ``:PORT`` or ``[IPV6]:PORT`` as address (None for the interface's own) and port.

    Raises:
        ConfigurationError: it isn't of that form.
    """
    advice = f"write HOST:PORT with a numeric address, for example 10.0.0.1:{default_port} or [fd00::1]:{default_port}"
    host, colon, port_text = text.rpartition(":")
    if text.endswith("]") or not colon:
        host, port_text = text, ""
    host = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host) if host else None
        port = int(port_text) if port_text else default_port
    except ValueError as error:
        raise ConfigurationError(f"{text!r} can't be used as an address: {advice}") from error
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"{text!r}: ports go from 0 to 65535; {advice}")
    return address, port
