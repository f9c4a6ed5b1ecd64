"""The signature of an image, as the machine that holds the file sees it."""

from __future__ import annotations

import dataclasses
import enum
from typing import Self

from protocol.errors import TrustError, UnsignedImageError
from protocol.image.image_format import SIGNATURE_NONE, ImageHeader
from protocol.trust.minisign import PublicKey, parse_signature_untrusted, verify
from protocol.trust.statement import (
    PATCH_PARTITIONS,
    ImageStatement,
    PatchPolicy,
    SignedStatement,
    format_time,
    parse_statement_untrusted,
)


class SignatureState(enum.StrEnum):
    """State of an image's signature, apart from the trust in its signer."""

    UNSIGNED = "unsigned"
    SIGNED = "signed"
    """The key in the header made it, and the statement is about this image."""
    INVALID = "invalid"


@dataclasses.dataclass(frozen=True, slots=True)
class ImageSignature:
    """The signature of one image.

    Attributes:
        state: see :class:`SignatureState`.
        signed: statement and signature; None unless :attr:`state` is SIGNED.
        statement: the statement.
        signer: the key that the header names; any key can stand there, so only agents' trusted keys decide.
        problem: the fault of an invalid signature.
    """

    state: SignatureState
    signed: SignedStatement | None = None
    statement: ImageStatement | None = None
    signer: PublicKey | None = None
    problem: str = ""

    @classmethod
    def of(cls, header: ImageHeader) -> Self:
        """Check the signature in a header against the key that the header names."""
        if header.signature_scheme == SIGNATURE_NONE:
            return cls(SignatureState.UNSIGNED)
        try:
            signed = header.signed
            if signed is None:
                return cls(
                    SignatureState.INVALID, problem=f"it has an {header.signature_name}: upgrade diskcast"
                )
            signer = PublicKey(parse_signature_untrusted(signed.signature).key_id, header.signer)
            statement = check_statement(signed, signer, header.image_id)
        except TrustError as error:
            return cls(SignatureState.INVALID, problem=str(error))
        return cls(SignatureState.SIGNED, signed, statement, signer)

    def to_json(self) -> dict[str, object]:
        """Return the fields that ``inspect --json`` prints."""
        fields: dict[str, object] = {"state": self.state.value, "problem": self.problem}
        if self.statement is not None and self.signer is not None:
            fields |= {"key_id": self.signer.id_text, "public_key": self.signer.text}
            fields |= statement_json(self.statement)
        return fields

    def lines(self) -> list[str]:
        """Return the lines that ``inspect`` prints."""
        if self.statement is None or self.signer is None:
            problem = f": {self.problem}" if self.problem else "; sign it with `diskcast sign`"
            return [f"signature  {self.state.value}{problem}"]
        statement = self.statement
        lines = [
            f"signature  {statement.name}, version {statement.version}, by the key {self.signer.id_text}",
            f"  key      {self.signer.text}",
        ]
        if statement.tags:
            lines.append(f"  tags     {', '.join(statement.tags)}")
        if statement.not_after is not None:
            lines.append(f"  expires  {format_time(statement.not_after)}")
        if statement.patches is not PatchPolicy.NONE:
            partitions = dict(statement.extensions).get(PATCH_PARTITIONS, "the seed partition")
            lines.append(f"  patches  {statement.patches.value}, of: {partitions}")
        return lines


def check_statement(signed: SignedStatement, signer: PublicKey, image_id: bytes) -> ImageStatement:
    """Return the statement about the image of this id that ``signer`` signed; an expired one is still the signer's.

    Raises:
        UnsignedImageError: the key didn't sign it.
        TrustError: it isn't a statement, or is about another image.
    """
    if not verify(signed.statement, parse_signature_untrusted(signed.signature), signer):
        raise UnsignedImageError(
            f"the signature isn't one of the key {signer.id_text}: statement or signature was altered, or another key "
            "made it; sign the image again"
        )
    statement = parse_statement_untrusted(signed.statement)
    if statement.image_id != image_id:
        raise TrustError(
            f"the statement is about the image {statement.image_id.hex()}, not about {image_id.hex()}: sign this image"
        )
    return statement


def statement_json(statement: ImageStatement) -> dict[str, object]:
    """Return a statement's fields as JSON values."""
    return {
        "signed_name": statement.name,
        "version": statement.version,
        "tags": list(statement.tags),
        "not_after": None if statement.not_after is None else format_time(statement.not_after),
        "patches": statement.patches.value,
        "extensions": dict(statement.extensions),
    }
