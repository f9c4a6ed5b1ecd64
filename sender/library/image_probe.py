"""What an image's file says of itself, wherever the file is."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from protocol.errors import ImageDamagedError
from protocol.image.block_codec import block_hash
from protocol.image.manifest import Manifest
from sender.imaging.image_file import ImageFile
from sender.store.records.images import Image, ImageState

SUFFIX: Final = ".dci"

_ROWS_PER_STEP: Final = 1 << 20
"""Of the column that is searched from its end for a stored block; the first step nearly always has one."""


@dataclasses.dataclass(frozen=True, slots=True)
class FoundImage:
    """An image whose header and manifest's head were read.

    Attributes:
        packed_at: when its file was last written, the best that is known.
    """

    image_id: str
    name: str
    raw_bytes: int
    stored_bytes: int
    block_bytes: int
    packed_at: datetime | None

    def as_image(self, location: str, source: str, state: ImageState, first_seen_at: datetime) -> Image:
        """Its record."""
        return Image(
            image_id=self.image_id,
            name=self.name,
            location=location,
            source=source,
            state=state,
            raw_bytes=self.raw_bytes,
            stored_bytes=self.stored_bytes,
            block_bytes=self.block_bytes,
            fetched_bytes=self.stored_bytes if state is ImageState.AVAILABLE else 0,
            problem="",
            packed_at=self.packed_at,
            first_seen_at=first_seen_at,
        )


def examine(path: Path) -> FoundImage:
    """Open an image's file, check all but its payload, and of that the end; blocks.

    A copy that was given its whole length before its bytes passes every check but that of the last block.

    Raises:
        DiskcastError: as :meth:`ImageFile.open` raises, or the file's end isn't there yet.
    """
    with ImageFile.open(path) as image:
        _check_last_block(image)
        manifest = image.manifest
        return FoundImage(
            image_id=manifest.image_id.hex(),
            name=manifest.name,
            raw_bytes=manifest.raw_bytes,
            stored_bytes=image.header.file_bytes,
            block_bytes=manifest.block_bytes,
            packed_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        )


def _check_last_block(image: ImageFile) -> None:
    block = _last_stored_block(image.manifest)
    if block is None:
        return
    stored = memoryview(bytearray(int(image.manifest.stored_bytes[block])))
    image.read_stored(block, stored)
    if block_hash(stored) != image.manifest.stored_hash[block].tobytes():
        raise ImageDamagedError(
            f"{image.path}: its last block doesn't have the bytes that were packed: the copy isn't complete, or was "
            "altered; copy it again (diskcast verify checks it all)"
        )


def _last_stored_block(manifest: Manifest) -> int | None:
    for stop in range(manifest.block_count, 0, -_ROWS_PER_STEP):
        start = max(0, stop - _ROWS_PER_STEP)
        stored = np.flatnonzero(manifest.stored_bytes[start:stop])
        if stored.size:
            return start + int(stored[-1])
    return None


def key_of(prefix: str, text: str) -> str:
    """An id for what has no image's id: a damaged file, or a URL that was never read."""
    return f"{prefix}:{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"


def printable(path: Path) -> str:
    """A path as text that JSON, a database and a terminal can hold, whatever bytes are in it."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
