"""Images of the library."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime


class ImageState(enum.StrEnum):
    """Availability of an image."""

    AVAILABLE = "available"
    """Checked, on the daemon's disk."""
    REMOTE = "remote"
    """Fetched when a cast needs it."""
    FETCHING = "fetching"
    DAMAGED = "damaged"
    """``problem`` has the cause and the fix."""
    GONE = "gone"
    """Named by history only."""


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An image of the library.

    Attributes:
        image_id: digest of its manifest, 64 hexadecimal digits; for a remote image that was never read, ``url:`` and a
            digest of its URL; for a damaged file, ``file:`` and a digest of its path.
        name: name from the packing.
        location: path or URL, without credentials.
        source: ``folder``, ``remote`` or ``""`` for a gone image.
        stored_bytes: length of the file.
        packed_at: modification time of the file, the best approximation.
        fetched_bytes: progress of a fetch.
        in_use_by: ids of the casts that use it now.
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
