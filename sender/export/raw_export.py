"""Export of an image as the disk's own bytes: a sparse file, or one stream of zstd."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from protocol.constants import MIB
from protocol.errors import ImageDamagedError
from protocol.image.block_codec import LEVEL_DEFAULT
from protocol.image.manifest import BlockKind
from protocol.packing.ordered_pipeline import SPAN_BYTES, job_count, ordered_map
from protocol.packing.source_hash import SourceHash, source_sha256_of
from sender.imaging.image_file import ImageFile
from sender.imaging.partial_file import PartialFile
from sender.imaging.verified_blocks import VerifiedBlocks

_ZEROS: Final = memoryview(bytes(4 * MIB))

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """Stored blocks with their raw bytes."""

    blocks: list[int]
    raw: list[bytes | memoryview]


def stored_raw_bytes(image: ImageFile) -> int:
    """Return the raw bytes of all stored blocks: the content of an export without its holes."""
    manifest = image.manifest
    return sum(summary.raw_bytes for kind, summary in manifest.summary().items() if kind <= BlockKind.RAW)


def write_raw(image: ImageFile, output: PartialFile, on_progress: Progress) -> bytes | None:
    """Write a sparse file.

    Returns:
        The SHA-256 of the disk, if the image records one; it is the same.

    Raises:
        ImageDamagedError: a block, or the SHA-256 of the disk, doesn't match the image.
        StorageError: a disk is full or failed.
    """
    with output.translated():
        os.ftruncate(output.fd, image.manifest.raw_bytes)

    def write(offset: int, raw: bytes | memoryview) -> None:
        output.write_at(offset, raw)

    return _write_blocks(image, write, on_progress)


def write_raw_zst(image: ImageFile, output: PartialFile, on_progress: Progress) -> bytes | None:
    """Write one zstd frame with its content size and checksum; otherwise as :func:`write_raw`."""
    raw_bytes = image.manifest.raw_bytes
    compressor = zstandard.ZstdCompressor(level=LEVEL_DEFAULT, threads=-1, write_checksum=True)
    with (
        output.translated(),
        io.FileIO(output.fd, "wb", closefd=False) as file,
        compressor.stream_writer(file, size=raw_bytes, closefd=False) as stream,
    ):
        done = 0

        def fill(stop: int) -> None:
            nonlocal done
            while done < stop:
                done += stream.write(_ZEROS[: stop - done])

        def write(offset: int, raw: bytes | memoryview) -> None:
            nonlocal done
            fill(offset)
            done += stream.write(raw)

        digest = _write_blocks(image, write, on_progress)
        fill(raw_bytes)
    return digest


def _write_blocks(
    image: ImageFile, write: Callable[[int, bytes | memoryview], object], on_progress: Progress
) -> bytes | None:
    """Call ``write`` with offset and raw bytes of each stored block, in order; return the SHA-256 of the disk."""
    manifest = image.manifest
    recorded = source_sha256_of(manifest)
    hasher = SourceHash() if recorded is not None else None
    blocks = VerifiedBlocks(image)
    total_bytes = stored_raw_bytes(image)
    done_bytes = 0

    def work(numbers: NDArray[np.int64], buffer: memoryview) -> _Piece:
        raw = []
        for place, block in enumerate(numbers.tolist()):
            start = place * manifest.block_bytes
            raw.append(blocks.read(block, buffer[start : start + manifest.block_bytes]))
        return _Piece(numbers.tolist(), raw)

    pieces = ordered_map(work, _spans(image), jobs=job_count(None))
    with contextlib.closing(pieces):
        for piece in pieces:
            for block, raw in zip(piece.blocks, piece.raw, strict=True):
                offset = block * manifest.block_bytes
                write(offset, raw)
                if hasher is not None:
                    hasher.add_zeros(offset - hasher.done_bytes)
                    hasher.add(raw)
                done_bytes += len(raw)
            on_progress(done_bytes, total_bytes)
    if hasher is None:
        return None
    hasher.add_zeros(manifest.raw_bytes - hasher.done_bytes)
    if hasher.digest() != recorded:
        raise ImageDamagedError(
            f"{image.path}: every block is correct, but the SHA-256 of the disk differs from the recorded one: the "
            "image was altered together with its hashes; pack the source again"
        )
    return recorded


def _spans(image: ImageFile) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of the stored blocks, at most a span at a time."""
    stored = np.flatnonzero(image.manifest.stored_mask)
    step = SPAN_BYTES // image.manifest.block_bytes
    for first in range(0, stored.size, step):
        yield stored[first : first + step]
