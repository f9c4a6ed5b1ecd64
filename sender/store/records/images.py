"""Images of the library."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime


class ImageState(enum.StrEnum):
    """Where an image is."""

    AVAILABLE = "available"
    """On this daemon's disk, checked."""
    REMOTE = "remote"
    """Known, and fetched when a cast needs it."""
    FETCHING = "fetching"
    DAMAGED = "damaged"
    """``problem`` says what is wrong and how to mend it."""
    GONE = "gone"
    """History names it, nobody has it any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An image of the library.

    Attributes:
        image_id: digest of its manifest, 64 hexadecimal digits; for a remote one that was never read, ``url:`` and a
            digest of its URL; for a damaged file, ``file:`` and a digest of its path.
        name: as packed.
        location: path or URL, credentials left out.
        source: ``folder``, ``remote`` or ``""`` when it is gone.
        stored_bytes: length of the file.
        packed_at: when the file was last written, the best that is known.
        fetched_bytes: how far a fetch has come.
        in_use_by: casts that use it now.
    """

    image_id: str
    name: str
    location: str
    source: str
    state: ImageState
    raw_bytes: int
    stored_bytes: int
    block_bytes: int
    fetched_bytes: int
    problem: str
    packed_at: datetime | None
    first_seen_at: datetime
    in_use_by: tuple[str, ...] = ()
