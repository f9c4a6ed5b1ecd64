"""The join code of a cast: the sender's certificate and the right to join, in one line that people can type.

The first 20 characters are a prefix of the certificate's pin, so that the machine recognises the sender; the next
12 are the cast's join secret, so that the sender recognises the machine. 12 more, for a signed image, are a prefix of
the digest of the signer's key: a machine that was given no trusted key trusts that one. All are base32 (RFC 4648,
section 6).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
from typing import Final, Self

from protocol.errors import ConfigurationError
from protocol.model.session_records import CastId
from protocol.trust.minisign import PublicKey
from protocol.trust.pin import PIN_CHARACTERS_MIN

SECRET_CHARACTERS: Final = 12
"""60 bits: guessed only online, against a sender that limits connections, during one cast."""

SECRET_KEY_BYTES: Final = 32
"""Length of the sender's key from which the secrets of all its casts derive."""

SIGNER_CHARACTERS: Final = 12
"""60 bits. Only the sender behind the pin could present another key, and it prints the code itself."""

_CODE_CHARACTERS: Final = PIN_CHARACTERS_MIN + SECRET_CHARACTERS
_GROUP_CHARACTERS: Final = 4
_BASE32: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")
_MISREAD: Final = str.maketrans({"0": "o", "1": "l", "8": "b"})
"""Digits that base32 doesn't have, and the letters that people read as them in lower case."""


@dataclasses.dataclass(frozen=True, slots=True)
class JoinCode:
    """The parts of a join code.

    Attributes:
        pin_prefix: the first characters of the pin of the sender's certificate.
        secret: the cast's join secret, sent as bearer.
        signer: the first characters of the digest of the key that signed the image; empty for an unsigned one.
    """

    pin_prefix: str
    secret: str = dataclasses.field(repr=False)
    signer: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the code that an operator typed: case, spaces and dashes don't matter, nor 0 for o and 1 for l.

        Raises:
            ConfigurationError: it isn't a join code; the message doesn't repeat it, since it holds a secret.
        """
        code = "".join(text.split()).replace("-", "").lower().translate(_MISREAD)
        lengths = (_CODE_CHARACTERS, _CODE_CHARACTERS + SIGNER_CHARACTERS)
        if len(code) not in lengths or not _BASE32.issuperset(code):
            raise ConfigurationError(
                f"the join code is incomplete or mistyped: it has {lengths[1]} letters and digits in groups of four, "
                f"or {lengths[0]} for an unsigned image; copy it from the output of diskcast send"
            )
        return cls(
            code[:PIN_CHARACTERS_MIN], code[PIN_CHARACTERS_MIN:_CODE_CHARACTERS], code[_CODE_CHARACTERS:]
        )

    @property
    def text(self) -> str:
        """The code as it is printed: ``xxxx-xxxx-…``, eleven groups, or eight for an unsigned image."""
        code = self.pin_prefix + self.secret + self.signer
        groups = (code[start : start + _GROUP_CHARACTERS] for start in range(0, len(code), _GROUP_CHARACTERS))
        return "-".join(groups)


def derive_join_secret(key: bytes, cast_id: CastId) -> str:
    """Return the join secret of a cast: the same after a restart of its sender, and of no use for another cast.

    Args:
        key: the sender's secret key, :data:`SECRET_KEY_BYTES` long.
        cast_id: the cast.
    """
    digest = hmac.digest(key, b"diskcast join secret\0" + cast_id.to_bytes(4, "big"), hashlib.sha256)
    return base64.b32encode(digest).decode("ascii").lower()[:SECRET_CHARACTERS]


def join_code(pin: str, key: bytes, cast_id: CastId, signer: PublicKey | None = None) -> JoinCode:
    """Return the join code of a cast of the sender with this pin and this secret key; ``signer`` signed the image."""
    prefix = signer_prefix(signer) if signer is not None else ""
    return JoinCode(pin[:PIN_CHARACTERS_MIN], derive_join_secret(key, cast_id), prefix)


def signer_prefix(key: PublicKey) -> str:
    """Return the part of a join code that names a signer."""
    digest = hashlib.sha256(b"diskcast signer\0" + key.key).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:SIGNER_CHARACTERS]
