"""Minisign's public keys and signatures: parsing, formatting, verification.

The formats are those of https://jedisct1.github.io/minisign/, so that ``minisign -Sm`` and ``minisign -V`` work with
images too. Only prehashed signatures (algorithm ``ED``, Ed25519 over BLAKE2b-512) are accepted. The legacy ones are
over the message itself: a signer of both kinds could be given the hash of another message to sign as a message.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import struct
from typing import Final, Self

from protocol.errors import ConfigurationError, UnsignedImageError

KEY_ALGORITHM: Final = b"Ed"
"""Ed25519 in key files. In signatures it marks the legacy kind."""

SIGNATURE_ALGORITHM: Final = b"ED"
"""Prehashed Ed25519."""

KEY_ID_BYTES: Final = 8
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
PUBLIC_KEY_CHARACTERS: Final = 56
"""A public key in one line."""

KEY_FILE_BYTES_MAX: Final = 4096
"""Minisign writes comments of at most 1 KiB; lines of diskcast's own follow the key."""

SIGNATURE_TEXT_BYTES_MAX: Final = 2046
"""Space in an image's header page behind a statement of 1 KiB."""

UNTRUSTED_COMMENT: Final = "untrusted comment: "
TRUSTED_COMMENT: Final = "trusted comment: "


@dataclasses.dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key with minisign's id for it, which is random and authenticates nothing."""

    key_id: bytes
    key: bytes

    @property
    def id_text(self) -> str:
        """Return the id as minisign prints it: a little-endian number in hexadecimal, here with its leading zeros."""
        return key_id_text(self.key_id)

    @property
    def text(self) -> str:
        """Return the key in one line, 56 characters, as ``minisign -P`` takes it."""
        return base64.b64encode(KEY_ALGORITHM + self.key_id + self.key).decode("ascii")

    def file_text(self, comment: str = "") -> str:
        """Return the content of a ``.pub`` file."""
        return f"{UNTRUSTED_COMMENT}{comment or f'minisign public key {self.id_text}'}\n{self.text}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key of a ``.pub`` file, or of its second line alone; further lines are ignored as minisign does.

        Raises:
            ConfigurationError: it is no public key of minisign.
        """
        lines = text[:KEY_FILE_BYTES_MAX].strip().splitlines()
        if lines and lines[0].startswith(UNTRUSTED_COMMENT):
            lines = lines[1:]
        data = _decode_base64(lines[0]) if lines else None
        if data is None or len(data) != 2 + KEY_ID_BYTES + PUBLIC_KEY_BYTES or data[:2] != KEY_ALGORITHM:
            raise ConfigurationError(
                "that isn't a public key of minisign: give the line of 56 characters that starts with RW, or its file"
            )
        return cls(data[2 : 2 + KEY_ID_BYTES], data[2 + KEY_ID_BYTES :])


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """A prehashed signature with its comments."""

    key_id: bytes
    signature: bytes
    trusted_comment: str
    global_signature: bytes
    """Signature over :attr:`signature` and :attr:`trusted_comment`."""

    def file_text(self, comment: str = "signature of a diskcast image") -> str:
        """Return the content of a ``.minisig`` file."""
        signature = base64.b64encode(SIGNATURE_ALGORITHM + self.key_id + self.signature).decode("ascii")
        global_signature = base64.b64encode(self.global_signature).decode("ascii")
        return (
            f"{UNTRUSTED_COMMENT}{comment}\n{signature}\n{TRUSTED_COMMENT}{self.trusted_comment}\n"
            f"{global_signature}\n"
        )


def key_id_text(key_id: bytes) -> str:
    """Return a key's id as people compare it."""
    (number,) = struct.unpack("<Q", key_id)
    return f"{number:016X}"


def signed_digest(message: bytes) -> bytes:
    """Return the bytes that a prehashed signature signs."""
    return hashlib.blake2b(message, digest_size=64).digest()


def parse_signature_untrusted(text: str) -> Signature:
    """Parse the content of a ``.minisig`` file.

    Raises:
        UnsignedImageError: it isn't a signature of minisign, or a legacy one.
    """
    if len(text.encode(errors="replace")) > SIGNATURE_TEXT_BYTES_MAX:
        raise UnsignedImageError(
            f"the signature has more than {SIGNATURE_TEXT_BYTES_MAX} bytes: sign again with a shorter comment"
        )
    lines = text.removesuffix("\n").split("\n")
    if len(lines) != 4 or not lines[0].startswith(UNTRUSTED_COMMENT):
        raise _malformed("it doesn't have the four lines of a .minisig file")
    data, global_signature = _decode_base64(lines[1]), _decode_base64(lines[3])
    if data is None or len(data) != 2 + KEY_ID_BYTES + SIGNATURE_BYTES:
        raise _malformed("its second line isn't a signature")
    if data[:2] == KEY_ALGORITHM:
        raise UnsignedImageError(
            "the signature is of minisign's legacy kind, without a hash: sign again without -l (minisign 0.11), or "
            "with -H (before 0.10)"
        )
    if data[:2] != SIGNATURE_ALGORITHM:
        raise _malformed("its algorithm is unknown")
    comment = lines[2].removeprefix(TRUSTED_COMMENT)
    if comment == lines[2] or not comment.replace("\t", " ").isprintable():  # minisign's own has tabs
        raise _malformed("its trusted comment is missing or not printable")
    if global_signature is None or len(global_signature) != SIGNATURE_BYTES:
        raise _malformed("its fourth line isn't the signature of the trusted comment")
    return Signature(data[2 : 2 + KEY_ID_BYTES], data[2 + KEY_ID_BYTES :], comment, global_signature)


def verify(message: bytes, signature: Signature, key: PublicKey) -> bool:
    """Return whether ``key`` signed both ``message`` and the signature's trusted comment.

    Costs 0.2 ms. The key's id isn't compared: it selects a key, the signature alone proves it.
    """
    # Imported here: commands that only show an image's header don't wait for OpenSSL.
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        public_key = Ed25519PublicKey.from_public_bytes(key.key)
        public_key.verify(signature.signature, signed_digest(message))
        public_key.verify(
            signature.global_signature, signature.signature + signature.trusted_comment.encode()
        )
    except (InvalidSignature, ValueError):  # ValueError: not a point of the curve
        return False
    return True


def _malformed(reason: str) -> UnsignedImageError:
    return UnsignedImageError(f"the signature isn't one of minisign: {reason}; sign the image again")


def _decode_base64(line: str) -> bytes | None:
    """Return the bytes of a line; None if it has other characters or isn't the one encoding of its bytes."""
    try:
        data = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return None
    return data if base64.b64encode(data) == line.encode() else None
