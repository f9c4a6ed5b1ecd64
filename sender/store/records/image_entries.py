"""Entries of images in the library: version number, note, pin and origin."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime
from typing import Final


class OriginKind(enum.StrEnum):
    """The way in which an image was made, or came into the library."""

    PACKED = "packed"
    """Packed from a disk or a raw file."""
    IMPORTED = "imported"
    """Converted from an image of another program."""
    CAPTURED = "captured"
    """Read from a machine's disk over the network."""
    FETCHED = "fetched"
    """Found at a URL."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageOrigin:
    """The source of an image.

    Attributes:
        source: format, machine or URL; empty if unknown.
        detail: more about it, for people: checked checksums, the disk, the tool.
    """

    kind: OriginKind = OriginKind.PACKED
    source: str = ""
    detail: str = ""


PACKED: Final = ImageOrigin(OriginKind.PACKED)
"""Origin of an image whose manifest names no other program's image."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageEntry:
    """Facts about an image that aren't in its file.

    Attributes:
        number: version number within its name: 1 for the first image of a name that appeared, never changed or reused.
        note: an operator's note.
        pinned: pruning keeps it.
        added_by: name of the token that added it; empty for a file that was put into a folder.
        origin: recorded source; None: as its file says.
        changed_at: time of the last change of this entry, later than all changes before; readers continue from it.
    """

    image_id: str
    name: str
    number: int
    note: str
    pinned: bool
    added_by: str
    origin: ImageOrigin | None
    changed_at: datetime
