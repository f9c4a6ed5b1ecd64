"""Header and manifest data of an image's file, local or remote."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from protocol.errors import ImageDamagedError
from protocol.image.block_codec import block_hash
from protocol.image.manifest import Manifest
from protocol.image.provenance import provenance_of
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature
from sender.store.records.image_entries import PACKED, ImageOrigin, OriginKind
from sender.store.records.images import Image, ImageState

SUFFIX: Final = ".dci"

_ROWS_PER_STEP: Final = 1 << 20
"""Rows per step of the search for the last stored block; the first step nearly always finds one."""


@dataclasses.dataclass(frozen=True, slots=True)
class FoundImage:
    """An image, as described by its header and the head of its manifest.

    Attributes:
        packed_at: modification time of the file, the best approximation.
        signature: signature in the file.
        origin: source from which it was packed.
    """

    image_id: str
    name: str
    raw_bytes: int
    stored_bytes: int
    block_bytes: int
    packed_at: datetime | None
    signature: ImageSignature
    origin: ImageOrigin = PACKED

    def as_image(
        self,
        location: str,
        source: str,
        state: ImageState,
        first_seen_at: datetime,
        signature: ImageSignature | None = None,
    ) -> Image:
        """Return the image's record, with the signature to use; by default the one in its file."""
        signature = signature or self.signature
        signer, statement = signature.signer, signature.statement
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
            problem=f"{location}: {signature.problem}" if signature.problem else "",
            packed_at=self.packed_at,
            first_seen_at=first_seen_at,
            signer=signer.id_text if signer is not None else "",
            signed_name=statement.name if statement is not None else "",
            version=str(statement.version) if statement is not None else "",
            origin=self.origin if source == "folder" else ImageOrigin(OriginKind.FETCHED, location),
        )


def examine(path: Path) -> FoundImage:
    """Read an image's file; check all of it except the payload, and the payload's last block. Blocks.

    Only the check of the last block detects an incomplete copy whose file has its full length already.

    Raises:
        DiskcastError: as :meth:`ImageFile.open` raises, or the end of the file is missing.
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
            signature=ImageSignature.of(image.header),
            origin=origin_of(manifest.metadata),
        )


def origin_of(metadata: Mapping[str, object]) -> ImageOrigin:
    """Return the source that a manifest's metadata names: another program's image, or else a disk."""
    provenance = provenance_of(metadata)
    if provenance is None:
        return PACKED
    detail = str(provenance).removeprefix(f"{provenance.format}, ")
    return ImageOrigin(OriginKind.IMPORTED, provenance.format, detail)


def _check_last_block(image: ImageFile) -> None:
    block = _last_stored_block(image.manifest)
    if block is None:
        return
    stored = memoryview(bytearray(int(image.manifest.stored_bytes[block])))
    image.read_stored(block, stored)
    if block_hash(stored) != image.manifest.stored_hash[block].tobytes():
        raise ImageDamagedError(
            f"{image.path}: its last block differs from the packed one: the copy is incomplete or was altered; copy it "
            "again (diskcast verify checks all of it)"
        )


def _last_stored_block(manifest: Manifest) -> int | None:
    for stop in range(manifest.block_count, 0, -_ROWS_PER_STEP):
        start = max(0, stop - _ROWS_PER_STEP)
        stored = np.flatnonzero(manifest.stored_bytes[start:stop])
        if stored.size:
            return start + int(stored[-1])
    return None


def key_of(prefix: str, text: str) -> str:
    """Return an id for an image without one: a damaged file, or a URL that was never read."""
    return f"{prefix}:{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"


def printable(path: Path) -> str:
    """Return a path as text that is valid in JSON, a database and a terminal, whatever bytes it contains."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
