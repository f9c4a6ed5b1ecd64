"""Verify every byte of an image file against its hashes, in parallel, and name the bad blocks."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES
from protocol.errors import ImageDamagedError
from protocol.image.block_codec import BlockDecoder, zero_hash
from protocol.image.image_format import PAGE_BYTES
from protocol.image.manifest import BlockKind, Manifest
from protocol.packing.ordered_pipeline import SPAN_BYTES, job_count, ordered_map
from protocol.packing.source_hash import SourceHash, source_sha256_of
from sender.imaging.image_file import ImageFile
from sender.imaging.verified_blocks import decode_checked

_ROWS_PER_STEP: Final = 1 << 16
"""Manifest rows that are checked together: 4.5 MB."""

BAD_BLOCKS_KEPT_MAX: Final = 1000
"""Bad blocks that a report names; the list must not grow with the damage."""

_BAD_BLOCKS_IN_MESSAGE: Final = 8


@dataclasses.dataclass(frozen=True, slots=True)
class BadBlock:
    """A block that doesn't match the manifest."""

    block: int
    raw_offset: int
    """Offset of the block on the disk."""
    file_offset: int
    """Offset of its stored bytes in the image file."""
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome of :func:`verify_image`."""

    block_count: int
    bad_count: int
    bad: tuple[BadBlock, ...]
    """The first :data:`BAD_BLOCKS_KEPT_MAX`."""
    source_sha256: bytes | None = None
    """SHA-256 of the whole disk, recomputed; None if the image doesn't record it."""

    def raise_if_bad(self, image: ImageFile) -> None:
        """Raise :class:`ImageDamagedError`, naming the first bad blocks, unless all are correct."""
        if not self.bad_count:
            recorded = source_sha256_of(image.manifest)
            if self.source_sha256 != recorded:
                raise ImageDamagedError(
                    f"{image.path}: every block is correct, but the SHA-256 of the disk differs from the recorded "
                    "one: the image was altered together with its hashes; pack the source again"
                )
            return
        named = "; ".join(
            f"block {bad.block} (disk offset {bad.raw_offset}, file offset {bad.file_offset}): {bad.reason}"
            for bad in self.bad[:_BAD_BLOCKS_IN_MESSAGE]
        )
        more = self.bad_count - min(len(self.bad), _BAD_BLOCKS_IN_MESSAGE)
        raise ImageDamagedError(
            f"{image.path}: {self.bad_count} of {self.block_count} blocks are damaged: {named}"
            + (f"; and {more} more" if more else "")
            + "; copy or pack the image again"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Checked:
    """The result of checking one piece."""

    payload_bytes: int
    bad: list[BadBlock]
    raw: list[tuple[int, bytes | memoryview]] = dataclasses.field(default_factory=list)
    """Blocks and their raw bytes, if the whole disk is hashed; some are in the piece's buffer."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """Stored blocks that are adjacent in the payload, or blocks without stored bytes."""

    blocks: NDArray[np.int64]
    stored: bool


def verify_image(
    image: ImageFile,
    *,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    on_bad_block: Callable[[BadBlock], None] = lambda _: None,
) -> VerifyReport:
    """Check everything that :meth:`ImageFile.open` didn't: stored bytes, raw bytes, and the padding between sections.

    Each stored block must match its stored hash and decompress to exactly its raw length with its raw hash; a block
    without stored bytes must have the hashes of zeros. If the image records the SHA-256 of the whole disk, it is
    checked too. Memory: two spans per thread, at most 64 MiB, and a decompressed block per thread; with SHA-256 a
    decompressed span.

    Args:
        image: an open image, whose header and manifest are already checked.
        jobs: threads; the number of CPUs by default.
        on_progress: called in this thread with the payload bytes checked and the total payload bytes.
        on_bad_block: called in this thread for each of the first :data:`BAD_BLOCKS_KEPT_MAX` bad blocks, in order.

    Raises:
        ImageDamagedError: the file was truncated since it was opened, or its padding isn't zero.
        StorageError: the disk failed.
        ConfigurationError: ``jobs`` is out of its range.
    """
    _check_padding(image)
    checker = _Checker(image)
    bad: list[BadBlock] = []
    bad_count = 0
    done_bytes = 0
    hasher = _DiskHasher(image.manifest) if source_sha256_of(image.manifest) is not None else None
    results = ordered_map(checker.work, checker.pieces(), jobs=job_count(jobs))
    with contextlib.closing(results):
        for checked in results:
            if hasher is not None:
                hasher.add(checked.raw)
            for bad_block in checked.bad:
                bad_count += 1
                if bad_count <= BAD_BLOCKS_KEPT_MAX:
                    bad.append(bad_block)
                    on_bad_block(bad_block)
            done_bytes += checked.payload_bytes
            on_progress(done_bytes, image.header.payload_bytes)
    source_sha256 = hasher.digest() if hasher is not None else None
    return VerifyReport(image.manifest.block_count, bad_count, tuple(bad), source_sha256)


def _check_padding(image: ImageFile) -> None:
    header = image.header
    start = header.manifest_offset + header.manifest_bytes
    padding = bytearray(header.payload_offset - start)
    assert len(padding) < PAGE_BYTES
    image.read_file(start, memoryview(padding))
    if any(padding):
        raise ImageDamagedError(
            f"{image.path}: the padding after the manifest, from offset {start}, was altered; copy or pack the "
            "image again"
        )


class _DiskHasher:
    """SHA-256 of the disk from its stored blocks in ascending order, with zeros between them."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._hash = SourceHash()

    def add(self, raw_blocks: list[tuple[int, bytes | memoryview]]) -> None:
        """Add the next stored blocks."""
        for block, raw in raw_blocks:
            self._hash.add_zeros(block * self._manifest.block_bytes - self._hash.done_bytes)
            self._hash.add(raw)

    def digest(self) -> bytes:
        """Return the hash of the whole disk."""
        self._hash.add_zeros(self._manifest.raw_bytes - self._hash.done_bytes)
        return self._hash.digest()


class _Checker:
    """A checker of pieces; :meth:`work` runs in many threads at once."""

    def __init__(self, image: ImageFile) -> None:
        self._image = image
        self._manifest = image.manifest
        self._keeps_raw = source_sha256_of(image.manifest) is not None
        self._thread_local = threading.local()

    def pieces(self) -> Iterator[_Piece]:
        """Yield every block once."""
        stored_mask = self._manifest.stored_mask
        blocks_per_span = SPAN_BYTES // self._manifest.block_bytes
        for start in range(0, self._manifest.block_count, _ROWS_PER_STEP):
            stop = min(self._manifest.block_count, start + _ROWS_PER_STEP)
            stored = stored_mask[start:stop]
            empty_blocks = start + np.flatnonzero(~stored)
            if empty_blocks.size:
                yield _Piece(empty_blocks, stored=False)
            stored_blocks = start + np.flatnonzero(stored)
            for first in range(0, stored_blocks.size, blocks_per_span):
                yield _Piece(stored_blocks[first : first + blocks_per_span], stored=True)

    def work(self, piece: _Piece, buffer: memoryview) -> _Checked:
        """Check one piece."""
        if piece.stored:
            return self._check_stored(piece.blocks, buffer)
        return _Checked(0, self._check_empty(piece.blocks))

    def _check_stored(self, blocks: NDArray[np.int64], buffer: memoryview) -> _Checked:
        manifest = self._manifest
        first_offset = int(manifest.offsets[blocks[0]])
        payload = buffer[: int(manifest.offsets[blocks[-1] + 1]) - first_offset]
        self._image.read_payload(first_offset, payload)
        checked = _Checked(len(payload), [])
        for block in blocks.tolist():
            start = int(manifest.offsets[block]) - first_offset
            raw: list[bytes | memoryview] = []
            reason = self._fault(block, payload[start : start + int(manifest.stored_bytes[block])], raw)
            if reason:
                checked.bad.append(self._bad(block, reason))
            elif self._keeps_raw:
                checked.raw.append((block, raw[0]))
        return checked

    def _fault(self, block: int, stored: memoryview, into: list[bytes | memoryview]) -> str:
        """Return the fault of a stored block, or an empty text and append its raw bytes to ``into``."""
        try:
            into.append(decode_checked(self._manifest, block, stored, self._decoder()))
        except ImageDamagedError as error:
            return str(error)
        return ""

    def _check_empty(self, blocks: NDArray[np.int64]) -> list[BadBlock]:
        manifest = self._manifest
        correct = ~manifest.stored_hash[blocks].any(axis=1)
        expected = np.zeros((blocks.size, HASH_BYTES), np.uint8)
        zero = manifest.kind[blocks] == BlockKind.ZERO
        expected[zero] = np.frombuffer(zero_hash(manifest.block_bytes), np.uint8)
        last = manifest.block_count - 1
        if blocks[-1] == last and zero[-1]:
            expected[-1] = np.frombuffer(zero_hash(manifest.raw_length(last)), np.uint8)
        correct &= (manifest.raw_hash[blocks] == expected).all(axis=1)
        return [self._bad(block, "its hashes aren't those of zeros") for block in blocks[~correct].tolist()]

    def _bad(self, block: int, reason: str) -> BadBlock:
        manifest = self._manifest
        file_offset = self._image.header.payload_offset + int(manifest.offsets[block])
        return BadBlock(block, block * manifest.block_bytes, file_offset, reason)

    def _decoder(self) -> BlockDecoder:
        decoder: BlockDecoder | None = getattr(self._thread_local, "decoder", None)
        if decoder is None:
            decoder = self._thread_local.decoder = BlockDecoder()
        return decoder
