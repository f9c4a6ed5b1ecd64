"""The certificates that a client accepts, as operators give them: pins, or the file of an authority."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import ssl
from collections.abc import Collection
from pathlib import Path
from typing import Self

from protocol.errors import ConfigurationError
from protocol.program.pinned_tls import ca_context, pinned_context, unpinned_context
from protocol.trust.pin import parse_pin


@dataclasses.dataclass(frozen=True, slots=True)
class PeerTrust:
    """The certificates that are accepted from a peer; by default none.

    Attributes:
        pins: pins or prefixes of pins.
        ca_file: certificates of a site's own authority, in PEM form.
        any_certificate: accept every certificate, on a trusted network.
    """

    pins: tuple[str, ...] = ()
    ca_file: Path | None = None
    any_certificate: bool = False

    @classmethod
    def of_options(cls, pins: Collection[str], ca_file: Path | None) -> Self:
        """Return the certificates that ``--pin`` and ``--ca`` accept.

        Raises:
            ConfigurationError: a pin is malformed, or both options were given.
        """
        if pins and ca_file is not None:
            raise ConfigurationError("--pin and --ca exclude each other: a pin needs no authority")
        return cls(tuple(parse_pin(pin) for pin in pins), ca_file)

    def __bool__(self) -> bool:
        """Return whether any certificate can be accepted."""
        return bool(self.pins or self.ca_file or self.any_certificate)

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of a client.

        Raises:
            ConfigurationError: the CA's file can't be used, or nothing was given to recognise the peer by.
        """
        if self.pins:
            return _pinned_context(self.pins)
        if self.ca_file is not None:
            return ca_context(self.ca_file)
        if self.any_certificate:
            return unpinned_context()
        raise ConfigurationError(
            "nothing was given to recognise the peer's certificate by: give its --pin, which 'diskcast certificate "
            "show' prints there, or --ca FILE"
        )


@functools.lru_cache(maxsize=16)
def _pinned_context(pins: tuple[str, ...]) -> ssl.SSLContext:
    """Return the context of these pins, made once: an agent that looks for its sender connects to many."""
    return pinned_context(pins)


def is_loopback_host(host: str) -> bool:
    """Return whether ``host`` of a URL is this machine: only there may a secret travel unencrypted."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
