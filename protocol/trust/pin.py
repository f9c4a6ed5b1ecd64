"""The pin of a certificate: a digest that a client compares instead of asking a certificate authority.

A pin is the SHA-256 of the certificate's DER encoding in lower-case base32 without padding, as in Syncthing's device
ids. A prefix of it may stand for the whole: 20 characters are 100 bits, beyond any search for a second certificate.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final

from protocol.errors import ConfigurationError

PIN_CHARACTERS: Final = 52
"""256 bits at five bits a character."""

PIN_CHARACTERS_MIN: Final = 20
"""100 bits: an attacker would need 2^100 certificates for one that has the pin of the sender's."""

_BASE32: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")


def pin_of(certificate_der: bytes) -> str:
    """Return the pin of a certificate."""
    digest = hashlib.sha256(certificate_der).digest()
    return base64.b32encode(digest).decode("ascii").rstrip("=").lower()


def parse_pin(text: str) -> str:
    """Return the pin that an operator gave: dashes, spaces and capitals are allowed, and a prefix is enough.

    Raises:
        ConfigurationError: it is too short or too long, or has characters that no pin has.
    """
    pin = "".join(text.split()).replace("-", "").lower()
    if not PIN_CHARACTERS_MIN <= len(pin) <= PIN_CHARACTERS or not _BASE32.issuperset(pin):
        raise ConfigurationError(
            f"{text!r} isn't a certificate's pin: give {PIN_CHARACTERS_MIN} to {PIN_CHARACTERS} characters a-z and "
            "2-7, as the sender prints them"
        )
    return pin


def pin_matches(pin: str, certificate_der: bytes) -> bool:
    """Return whether ``pin``, a whole one or a prefix from :func:`parse_pin`, is the certificate's."""
    if len(pin) < PIN_CHARACTERS_MIN:
        return False
    return hmac.compare_digest(pin_of(certificate_der)[: len(pin)], pin)
