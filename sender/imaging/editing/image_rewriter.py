"""Write an image again with a few blocks replaced.

The stored bytes of all other blocks are copied as they are, each checked against its hash, so that a changed image
costs no compression and never gives damaged data a new id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES, MIB
from protocol.errors import ConfigurationError
from protocol.image.block_codec import LEVEL_DEFAULT, BlockEncoder, block_hash, zero_hash
from protocol.image.image_format import ImageHeader
from protocol.image.manifest import BlockKind
from protocol.image.manifest_format import ManifestLayout
from sender.imaging.image_file import ImageFile
from sender.imaging.image_writer import ImageWriter

_COPY_BYTES: Final = 16 * MIB
"""Stored bytes per read; memory of a copy."""
_ROWS_PER_COPY_MAX: Final = 1 << 16
"""Manifest rows that are copied together: 4.5 MB."""

ChangedBlock = tuple[int, bytes | None]
"""Number and new raw bytes of a block; None for a block that no filesystem uses any more."""


def rewrite_image(
    image: ImageFile,
    output_path: Path,
    start: bytes,
    rows: ManifestLayout,
    changed: Iterable[ChangedBlock],
    sign: Callable[[ImageHeader], ImageHeader] = lambda header: header,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Path, bytes]:
    """Write ``image`` with the blocks of ``changed``, ascending, to ``output_path``; return its path and id.

    Args:
        image: the image.
        output_path: the new image; it appears when it is complete.
        start: the new manifest before its columns.
        rows: offsets of its columns; it may have more blocks than the image, all of them in ``changed``.
        changed: the blocks to replace.
        sign: returns the header with a signature.
        on_progress: called with the payload bytes copied and those of the image.

    Raises:
        ConfigurationError: the output is the image itself, or can't be created.
        ImageDamagedError: a block doesn't match its hash.
        StorageError: a disk is full or failed.
    """
    manifest = image.manifest
    with ImageWriter(output_path, start, rows) as writer:
        if writer.path == image.path.resolve():
            raise ConfigurationError(f"{image.path}: choose another output than the image itself")
        encoder = BlockEncoder(LEVEL_DEFAULT, manifest.block_bytes)
        next_block = 0
        for block, raw in changed:
            _copy_blocks(image, writer, next_block, block, on_progress)
            _write_block(writer, encoder, block, raw)
            next_block = block + 1
        _copy_blocks(image, writer, next_block, manifest.block_count, on_progress)
        return writer.path, writer.commit(sign=sign)


def _write_block(writer: ImageWriter, encoder: BlockEncoder, block: int, raw: bytes | None) -> None:
    stored, stored_hash, raw_hash = b"", bytes(HASH_BYTES), bytes(HASH_BYTES)
    if raw is None:
        kind = BlockKind.UNUSED
    elif not any(raw):
        kind, raw_hash = BlockKind.ZERO, zero_hash(len(raw))
    else:
        kind, encoded = encoder.encode(memoryview(raw))
        stored, stored_hash, raw_hash = bytes(encoded), block_hash(encoded), block_hash(raw)
    writer.append_payload([stored])
    writer.write_rows(
        block, np.array([kind], np.uint8), np.array([len(stored)], np.uint32), stored_hash, raw_hash
    )


def _copy_blocks(
    image: ImageFile, writer: ImageWriter, first: int, stop: int, on_progress: Callable[[int, int], None]
) -> None:
    """Copy the rows and stored bytes of unchanged blocks."""
    manifest = image.manifest
    buffer = memoryview(bytearray(max(_COPY_BYTES, manifest.block_bytes)))
    for start, end in _pieces(manifest.stored_bytes, first, min(stop, manifest.block_count)):
        lengths = manifest.stored_bytes[start:end]
        rows = np.arange(start, end)
        stored_hash = manifest.stored_hash[rows]
        offset = manifest.offset_of(start)
        payload = buffer[: int(lengths.sum(dtype=np.int64))]
        image.read_payload(offset, payload)
        position = 0
        for index in np.flatnonzero(lengths).tolist():
            length = int(lengths[index])
            if block_hash(payload[position : position + length]) != stored_hash[index].tobytes():
                raise image.wrong_block(start + index)
            position += length
        writer.append_payload([payload])
        writer.write_rows(
            start, manifest.kind[rows], lengths, stored_hash.tobytes(), manifest.raw_hash[rows].tobytes()
        )
        on_progress(offset + len(payload), image.header.payload_bytes)


def _pieces(stored_bytes: NDArray[np.uint32], first: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges of blocks whose stored bytes fit into the buffer."""
    while first < stop:
        window = stored_bytes[first : min(stop, first + _ROWS_PER_COPY_MAX)]
        fitting = int(np.searchsorted(np.cumsum(window, dtype=np.int64), _COPY_BYTES, side="right"))
        end = first + max(1, fitting)
        yield first, end
        first = end
