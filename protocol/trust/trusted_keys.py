"""The keys that a machine trusts, and the verification of an image's statement with them."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable
from typing import Final, Self

from protocol.errors import ConfigurationError, TrustError, UnsignedImageError
from protocol.trust.minisign import PublicKey, key_id_text, parse_signature_untrusted, verify
from protocol.trust.statement import (
    ImageStatement,
    SignedStatement,
    format_time,
    parse_statement_untrusted,
    parse_time,
)

TRUSTED_KEYS_MAX: Final = 256
"""Far more signers than a site has; with each a signature costs at most 0.2 ms."""

_NOT_AFTER: Final = "not-after: "
_REVOKED: Final = "revoked: "


@dataclasses.dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key and what an operator says about it.

    Attributes:
        key: the key.
        name: name for people, from its file or option.
        not_after: the time from which its signatures count no longer; None for never.
        revoked: the reason of its revocation; empty for a valid key. A revoked key stays in its file: other sources,
            such as a kernel command line of last year, may still list it as trusted.
    """

    key: PublicKey
    name: str
    not_after: datetime.datetime | None = None
    revoked: str = ""

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """Return the key of a ``.pub`` file, with the lines ``not-after:`` and ``revoked:`` behind it.

        Raises:
            ConfigurationError: the file isn't one of a public key, or a line is unknown.
        """
        try:
            key = PublicKey.parse(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}: {error}") from error
        lines = text.strip().splitlines()
        own_lines = lines[lines.index(key.text) + 1 :]
        not_after: datetime.datetime | None = None
        revoked = ""
        for line in filter(None, map(str.strip, own_lines)):
            if line.startswith(_NOT_AFTER):
                try:
                    not_after = parse_time(line.removeprefix(_NOT_AFTER))
                except ValueError as error:
                    raise ConfigurationError(
                        f"{name}: {line!r}: write the time as 2027-12-31T00:00:00Z"
                    ) from error
            elif line.startswith(_REVOKED):
                revoked = line.removeprefix(_REVOKED)
            else:
                raise ConfigurationError(
                    f"{name}: {line!r} isn't a line of a trusted key: remove it, or write {_NOT_AFTER}… or {_REVOKED}…"
                )
        return cls(key, name, not_after, revoked)

    def file_text(self) -> str:
        """Return the content of the key's ``.pub`` file, which ``minisign -p`` reads too."""
        text = self.key.file_text(f"{self.name} {self.key.id_text}")
        if self.not_after is not None:
            text += f"{_NOT_AFTER}{format_time(self.not_after)}\n"
        if self.revoked:
            text += f"{_REVOKED}{self.revoked}\n"
        return text

    def fault(self, now: datetime.datetime) -> str:
        """Return the reason why the key's signatures don't count at ``now``; empty if they do."""
        if self.revoked:
            return f"the key {self.key.id_text} ({self.name}) is revoked: {self.revoked}"
        if self.not_after is not None and now >= self.not_after:
            return (
                f"the key {self.key.id_text} ({self.name}) expired at {format_time(self.not_after)}; "
                f"this machine's clock says {format_time(now)}"
            )
        return ""


@dataclasses.dataclass(frozen=True, slots=True)
class VerifiedImage:
    """A statement that a trusted key signed, and the key."""

    statement: ImageStatement
    key: TrustedKey


class TrustedKeys:
    """Every key that a machine was given, the revoked ones included.

    Attributes:
        keys: in the order in which they were given.
    """

    def __init__(self, keys: Iterable[TrustedKey] = ()) -> None:
        """Hold the keys.

        Raises:
            ConfigurationError: there are too many.
        """
        self.keys = tuple(keys)
        if len(self.keys) > TRUSTED_KEYS_MAX:
            raise ConfigurationError(
                f"{len(self.keys)} trusted keys are given, at most {TRUSTED_KEYS_MAX} are allowed: remove old ones"
            )

    def usable(self, now: datetime.datetime) -> list[TrustedKey]:
        """Return the keys whose signatures count: not expired, and revoked by no source."""
        return [key for key in self.keys if not self._fault(key, now)]

    def verify(self, signed: SignedStatement, now: datetime.datetime) -> VerifiedImage:
        """Verify an image's statement, and parse it.

        Raises:
            UnsignedImageError: no usable key signed it.
            TrustError: a trusted key signed it, but it isn't a statement that this version knows, or it has expired.
        """
        key = self.signer_of(signed, now)
        statement = parse_statement_untrusted(signed.statement)
        if statement.not_after is not None and now >= statement.not_after:
            raise TrustError(
                f"the image {statement.name!r}, version {statement.version}, expired at "
                f"{format_time(statement.not_after)}: cast a newer one, or sign it again with a later --not-after; "
                f"this machine's clock says {format_time(now)}"
            )
        return VerifiedImage(statement, key)

    def signer_of(self, signed: SignedStatement, now: datetime.datetime, thing: str = "image") -> TrustedKey:
        """Return the usable key that signed a text, which isn't parsed.

        Args:
            signed: the text with its signature.
            now: the machine's clock.
            thing: subject of the text, for error messages.

        Raises:
            UnsignedImageError: no usable key signed it.
        """
        signature, statement = parse_signature_untrusted(signed.signature), signed.statement
        named = [key for key in self.keys if key.key.key_id == signature.key_id]
        if not named:
            raise UnsignedImageError(
                f"the {thing} is signed by the key {key_id_text(signature.key_id)}, which this machine doesn't trust: "
                f"add that key to the trusted keys if it is yours, or sign the {thing} with one of them"
            )
        signers = [key for key in named if verify(statement, signature, key.key)]
        if not signers:
            raise UnsignedImageError(
                f"the {thing}'s signature isn't one of the key {named[0].key.id_text} ({named[0].name}): statement or "
                f"signature was altered; sign the {thing} again"
            )
        faults = [self._fault(key, now) for key in signers]
        if all(faults):
            raise UnsignedImageError(f"{faults[0]}; sign the {thing} with a valid key")
        return signers[faults.index("")]

    def _fault(self, key: TrustedKey, now: datetime.datetime) -> str:
        """Return the key's fault; a revocation counts for the same key from every source."""
        for other in self.keys:
            if other.revoked and other.key.key == key.key.key:
                return other.fault(now)
        return key.fault(now)
