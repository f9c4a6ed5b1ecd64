"""A signed set of patches: one signature for the patches of a whole room.

A file of ASCII and UTF-8 text in three parts with blank lines between them: the statement, which is signed; one line
``machine-id patch-id`` for each machine, sorted; the signature as minisign writes it::

    diskcast-patches-v1
    image-id: 64 hexadecimal digits
    name: lab
    count: 30
    digest: 64 hexadecimal digits
    not-after: never

    pc-01 64 hexadecimal digits
    …

    untrusted comment: …

The digest is the BLAKE3 of the lines with their newlines: an air-gapped signer carries the statement alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping
from typing import Final, Self

from blake3 import blake3

from protocol.constants import HASH_BYTES, MIB
from protocol.errors import ConfigurationError, PatchRefusedError, UnsignedImageError
from protocol.patch.machine_patch import is_machine_id
from protocol.trust.statement import (
    STATEMENT_NAME,
    STATEMENT_NAME_MAX,
    SignedStatement,
    format_time,
    parse_time,
)
from protocol.trust.trusted_keys import TrustedKeys

PATCH_SET_TITLE: Final = "diskcast-patches-v1"

PATCH_SET_MACHINES_MAX: Final = 8192
"""Machines of one set: eight times those of a cast."""

PATCH_SET_BYTES_MAX: Final = 2 * MIB
"""As many of the longest lines, with statement and signature."""

_FIELDS: Final = ("image-id", "name", "count", "digest", "not-after")
_ID: Final = re.compile(rf"[0-9a-f]{{{2 * HASH_BYTES}}}")


@dataclasses.dataclass(frozen=True, slots=True)
class PatchSet:
    """The patches of a room's machines for one image.

    Attributes:
        image_id: the image.
        name: name for people, such as the room's.
        patch_ids: id of each machine's patch.
        not_after: the time from which agents refuse the set; None for never.
    """

    image_id: bytes
    name: str
    patch_ids: Mapping[str, bytes]
    not_after: datetime.datetime | None = None

    def lines(self) -> bytes:
        """Return the sorted lines of the machines.

        Raises:
            ConfigurationError: a machine id is invalid, or there are too many machines.
        """
        if not 1 <= len(self.patch_ids) <= PATCH_SET_MACHINES_MAX:
            raise ConfigurationError(f"a set has the patches of 1 to {PATCH_SET_MACHINES_MAX} machines")
        if bad := [machine for machine in self.patch_ids if not is_machine_id(machine)]:
            raise ConfigurationError(f"{bad[0][:64]!r} can't name the machine of a patch")
        lines = (f"{machine} {patch_id.hex()}\n".encode() for machine, patch_id in self.patch_ids.items())
        return b"".join(sorted(lines))

    def statement(self) -> bytes:
        """Return the canonical text to sign.

        Raises:
            ConfigurationError: a field has a value that no set can have.
        """
        if not STATEMENT_NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"{self.name[:64]!r} can't name a set of patches: use 1 to {STATEMENT_NAME_MAX} printable ASCII letters"
            )
        lines = self.lines()
        values = (
            self.image_id.hex(),
            self.name,
            str(len(self.patch_ids)),
            blake3(lines).hexdigest(),
            format_time(self.not_after),
        )
        fields = [f"{name}: {value}" for name, value in zip(_FIELDS, values, strict=True)]
        return ("\n".join([PATCH_SET_TITLE, *fields]) + "\n").encode("ascii")


@dataclasses.dataclass(frozen=True, slots=True)
class SignedPatchSet:
    """A set's statement and lines with the signature, none of them checked yet."""

    signed: SignedStatement
    lines: bytes

    def to_bytes(self) -> bytes:
        """Return the content of the set's file."""
        return b"\n".join([self.signed.statement, self.lines, self.signed.signature.encode()])

    @classmethod
    def from_bytes_untrusted(cls, data: bytes) -> Self:
        """Return the parts of a set's file.

        Raises:
            PatchRefusedError: it has other parts, or is too large.
        """
        parts = data.split(b"\n\n")
        if len(data) > PATCH_SET_BYTES_MAX or len(parts) != 3:
            raise _refused("its file doesn't have the three parts of a set")
        try:
            signature = parts[2].decode()
        except UnicodeDecodeError as error:
            raise _refused("its signature isn't text") from error
        return cls(SignedStatement(parts[0] + b"\n", signature), parts[1] + b"\n")

    def verify(self, keys: TrustedKeys, now: datetime.datetime) -> PatchSet:
        """Return the set, if a trusted key signed it.

        Raises:
            PatchRefusedError: no trusted key signed it, it was altered, or it has expired.
        """
        try:
            keys.signer_of(self.signed, now, "set of patches")
        except UnsignedImageError as error:
            raise PatchRefusedError(str(error)) from error
        found = parse_patch_set_untrusted(self.signed.statement, self.lines)
        if found.not_after is not None and now >= found.not_after:
            raise _refused(
                f"it expired at {format_time(found.not_after)}; this machine's clock says {format_time(now)}"
            )
        return found


def parse_patch_set_untrusted(statement: bytes, lines: bytes) -> PatchSet:
    """Parse a set, whose signature the caller has verified.

    Raises:
        PatchRefusedError: it isn't a canonical set of this version.
    """
    try:
        rows = statement.decode("ascii").split("\n")
        entries = [line.rpartition(" ") for line in lines.decode().split("\n")[:-1]]
    except UnicodeDecodeError as error:
        raise _refused("it isn't text") from error
    if rows[0] != PATCH_SET_TITLE:
        raise _refused(f"it isn't a {PATCH_SET_TITLE}: upgrade diskcast if a newer version made it")
    fields = [row.partition(": ") for row in rows[1:-1]]
    if tuple(name for name, _, _ in fields) != _FIELDS:
        raise _refused(f"its fields aren't {', '.join(_FIELDS)}")
    if not all(_ID.fullmatch(patch_id) for _, _, patch_id in entries):
        raise _refused("a line has no patch id")
    image_id, name, _, _, not_after = (value for _, _, value in fields)
    try:
        found = PatchSet(
            bytes.fromhex(image_id),
            name,
            {machine: bytes.fromhex(patch_id) for machine, _, patch_id in entries},
            parse_time(not_after),
        )
        canonical = found.statement() == statement and found.lines() == lines
    except (ValueError, ConfigurationError) as error:
        raise _refused(f"a field is out of its range: {error}") from error
    if not canonical or len(found.image_id) != HASH_BYTES:
        raise _refused("its lines don't match its statement, or it isn't written in the one canonical way")
    return found


def _refused(reason: str) -> PatchRefusedError:
    return PatchRefusedError(f"the set of patches is refused: {reason}; make and sign it again")
