"""The signed statement about an image: its id, name, version, tags, expiry and patch policy.

A signature covers this text of at most 1 KiB rather than the manifest, so that an air-gapped signer carries little, and
version and tags change without another image id::

    diskcast-image-v1
    image-id: 64 hexadecimal digits
    name: lab-2026
    version: 7
    tags: lab-pc,uefi
    not-after: never
    patches: none

A statement has exactly one encoding; anything else is refused. It is parsed only after its signature was verified.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import re
import struct
from typing import Final, Self

from protocol.constants import HASH_BYTES
from protocol.errors import ConfigurationError, TrustError, UnsignedImageError
from protocol.trust.minisign import SIGNATURE_TEXT_BYTES_MAX

STATEMENT_BYTES_MAX: Final = 1024
STATEMENT_TITLE: Final = "diskcast-image-v1"

STATEMENT_NAME_MAX: Final = 64
"""As long as an image's name."""

STATEMENT_VERSION_MAX: Final = 2**64 - 1
STATEMENT_TAGS_MAX: Final = 16
"""More than any fleet's kinds of machines that one image suits."""

NO_TAGS: Final = "none"
"""Stands for an empty list: a space at the end of a line wouldn't survive every editor."""

NEVER: Final = "never"

PATCH_PARTITIONS: Final = "x-patch-partitions"
"""Numbers of the partitions that machine patches may change, such as ``1,5``, or ``all``; the seed partition alone
without it."""
ALL_PARTITIONS: Final = "all"

_TAG: Final = re.compile(r"[a-z0-9.-]{1,64}")
STATEMENT_NAME: Final = re.compile(r"[!-~]([ -~]{0,62}[!-~])?")
"""Printable ASCII without spaces at the ends."""

_EXTENSION: Final = re.compile(r"x-[a-z0-9-]{1,62}")
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_FIELDS: Final = ("image-id", "name", "version", "tags", "not-after", "patches")
_HEADER_LENGTH: Final = struct.Struct("<H")


class PatchPolicy(enum.StrEnum):
    """The party on whose word an agent changes the image for one machine by a machine patch."""

    NONE = "none"
    """Nobody's."""
    SIGNED = "signed"
    """A trusted key's, which signed a set of patches with this one in it."""
    DAEMON = "daemon"
    """The daemon's or sender's, as authenticated by its certificate."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageStatement:
    """A signer's statement about an image.

    Attributes:
        image_id: the image's id.
        name: the signed name, by which versions are compared.
        version: rises with each release; a machine refuses one below its floor.
        tags: kinds of machines that the image is made for, sorted.
        not_after: the time from which agents refuse the image, in whole seconds of UTC; None for never.
        patches: see :class:`PatchPolicy`.
        extensions: further fields, whose names start with ``x-``, sorted by name.
    """

    image_id: bytes
    name: str
    version: int
    tags: tuple[str, ...] = ()
    not_after: datetime.datetime | None = None
    patches: PatchPolicy = PatchPolicy.NONE
    extensions: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """Return the canonical text.

        Raises:
            ConfigurationError: a field has a value that no statement can have.
        """
        self._require(len(self.image_id) == HASH_BYTES, f"the image id must have {HASH_BYTES} bytes")
        self._require(
            STATEMENT_NAME.fullmatch(self.name),
            f"the name must be 1 to {STATEMENT_NAME_MAX} printable ASCII letters",
        )
        self._require(
            0 <= self.version <= STATEMENT_VERSION_MAX, "the version must be a number of at most 64 bits"
        )
        self._require(len(self.tags) <= STATEMENT_TAGS_MAX, f"at most {STATEMENT_TAGS_MAX} tags")
        for tag in self.tags:
            self._require(
                _TAG.fullmatch(tag) and tag != NO_TAGS, f"{tag!r} isn't a tag: use a-z, 0-9, dots and dashes"
            )
        self._require(list(self.tags) == sorted(set(self.tags)), "tags must be sorted and different")
        for name, value in self.extensions:
            self._require(
                _EXTENSION.fullmatch(name), f"{name!r} isn't the name of an extension: it starts with x-"
            )
            self._require(
                STATEMENT_NAME.fullmatch(value), f"{name}: the value must be 1 to 64 printable ASCII letters"
            )
        names = [name for name, _ in self.extensions]
        self._require(names == sorted(set(names)), "extensions must be sorted and different")
        values = (
            self.image_id.hex(),
            self.name,
            str(self.version),
            ",".join(self.tags) or NO_TAGS,
            format_time(self.not_after),
            self.patches.value,
        )
        lines = [STATEMENT_TITLE]
        lines += [
            f"{name}: {value}" for name, value in (*zip(_FIELDS, values, strict=True), *self.extensions)
        ]
        text = "\n".join(lines) + "\n"
        self._require(
            len(text) <= STATEMENT_BYTES_MAX, f"the statement has more than {STATEMENT_BYTES_MAX} bytes"
        )
        return text.encode("ascii")

    @staticmethod
    def _require(condition: object, message: str) -> None:
        if not condition:
            raise ConfigurationError(f"{message}: sign the image with another value")


@dataclasses.dataclass(frozen=True, slots=True)
class SignedStatement:
    """A statement's text with its signature's, neither of them checked yet.

    Attributes:
        statement: the signed bytes.
        signature: content of the ``.minisig`` file.
    """

    statement: bytes
    signature: str

    def to_bytes(self) -> bytes:
        """Return both as an image's header stores them."""
        return _HEADER_LENGTH.pack(len(self.statement)) + self.statement + self.signature.encode()

    @classmethod
    def from_bytes_untrusted(cls, data: bytes) -> Self:
        """Return both from an image's header.

        Raises:
            UnsignedImageError: the bytes have another form.
        """
        try:
            (length,) = _HEADER_LENGTH.unpack_from(data)
            statement, signature = data[2 : 2 + length], data[2 + length :].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise UnsignedImageError("the image's signature is damaged: sign the image again") from error
        if len(statement) != length or length > STATEMENT_BYTES_MAX:
            raise UnsignedImageError("the image's signature is damaged: sign the image again")
        return cls(statement, signature)


assert _HEADER_LENGTH.size + STATEMENT_BYTES_MAX + SIGNATURE_TEXT_BYTES_MAX == 3072


def format_time(when: datetime.datetime | None) -> str:
    """Return a time of a statement or a key: whole seconds of UTC, or ``never``."""
    if when is None:
        return NEVER
    utc = when.astimezone(datetime.UTC).replace(tzinfo=None)
    return utc.isoformat(timespec="seconds") + "Z"


def parse_time(text: str) -> datetime.datetime | None:
    """Return the time of :func:`format_time`.

    Raises:
        ValueError: it has another form.
    """
    if text == NEVER:
        return None
    return datetime.datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=datetime.UTC)


def parse_statement_untrusted(data: bytes) -> ImageStatement:
    """Parse a statement, whose signature the caller has verified.

    Raises:
        TrustError: it isn't a canonical statement of this version, or has a field that this version doesn't know.
    """
    if len(data) > STATEMENT_BYTES_MAX:
        raise _refused(f"it has more than {STATEMENT_BYTES_MAX} bytes")
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise _refused("it isn't ASCII") from error
    if lines[0] != STATEMENT_TITLE:
        raise _refused(f"it isn't a {STATEMENT_TITLE}: upgrade diskcast if a newer version signed it")
    fields = [line.partition(": ") for line in lines[1:-1]]
    names = tuple(name for name, _, _ in fields)
    if names[: len(_FIELDS)] != _FIELDS:
        raise _refused(f"its fields aren't {', '.join(_FIELDS)}")
    if unknown := [name for name in names[len(_FIELDS) :] if not name.startswith("x-")]:
        raise _refused(f"this version doesn't know its field {unknown[0][:64]!r}: upgrade diskcast")
    image_id, name, version, tags, not_after, patches = (value for _, _, value in fields[: len(_FIELDS)])
    try:
        statement = ImageStatement(
            image_id=bytes.fromhex(image_id),
            name=name,
            version=int(version),
            tags=() if tags == NO_TAGS else tuple(tags.split(",")),
            not_after=parse_time(not_after),
            patches=PatchPolicy(patches),
            extensions=tuple((extension, value) for extension, _, value in fields[len(_FIELDS) :]),
        )
        canonical = statement.encode()
    except (ValueError, ConfigurationError) as error:
        raise _refused(f"a field is out of its range: {error}") from error
    if canonical != data:
        raise _refused("it isn't written in the one canonical way")
    return statement


def _refused(reason: str) -> TrustError:
    return TrustError(f"the image's statement is refused: {reason}")
