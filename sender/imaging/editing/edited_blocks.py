"""The blocks of an image that edited copies of its partitions change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.image.block_codec import block_hash
from protocol.image.manifest import BlockKind
from protocol.packing.used_blocks import whole_blocks
from sender.imaging.editing.image_rewriter import ChangedBlock
from sender.imaging.editing.partition_copy import PartitionCopy
from sender.imaging.verified_blocks import VerifiedBlocks

_ROWS_PER_STEP: Final = 1 << 20
"""Rows per step: temporaries of some MB."""


@dataclasses.dataclass(frozen=True, slots=True)
class EditedBlocks:
    """An image and the copies of its partitions, which don't overlap; :attr:`PartitionCopy.free` is up to date.

    A block that is entirely in free space becomes unused, as ``pack`` makes it; any other block is compared with the
    image's.
    """

    blocks: VerifiedBlocks
    copies: Sequence[PartitionCopy]

    def changed(self) -> Iterator[ChangedBlock]:
        """Yield the changed blocks, ascending.

        Raises:
            ImageDamagedError: a block at the edge of a partition doesn't match its hashes.
            StorageError: a disk failed.
        """
        manifest = self.blocks.image.manifest
        free = self._free_ranges()
        unused = whole_blocks(free, manifest.block_bytes, manifest.raw_bytes)
        for first, stop in self._touched():
            for start in range(first, stop, _ROWS_PER_STEP):
                end = min(stop, start + _ROWS_PER_STEP)
                becomes_unused = _covered(unused, start, end)
                kind = manifest.kind[start:end]
                for index in np.flatnonzero(~(becomes_unused & (kind == BlockKind.UNUSED))).tolist():
                    if becomes_unused[index]:
                        yield start + index, None
                        continue
                    raw = self._read(start + index)
                    if self._differs(start + index, raw, free):
                        yield start + index, raw

    def _free_ranges(self) -> NDArray[np.int64]:
        """Return the free ranges of all copies, in bytes of the disk; those of adjacent partitions aren't joined."""
        ranges = [copy.part.start_bytes + copy.free for copy in self.copies]
        return np.concatenate([np.empty((0, 2), np.int64), *ranges])

    def _touched(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of the blocks with a byte of a copy, ascending and disjoint."""
        block_bytes = self.blocks.image.manifest.block_bytes
        done = 0
        for copy in sorted(self.copies, key=lambda each: each.part.start_bytes):
            first = max(done, copy.part.start_bytes // block_bytes)
            done = max(done, -(-copy.part.stop_bytes // block_bytes))
            yield first, done

    def _read(self, block: int) -> bytes:
        """Return the new raw bytes of a block."""
        manifest = self.blocks.image.manifest
        start, length = block * manifest.block_bytes, manifest.raw_length(block)
        inside = [
            copy
            for copy in self.copies
            if copy.part.start_bytes < start + length and start < copy.part.stop_bytes
        ]
        if len(inside) == 1 and inside[0].part.start_bytes <= start:
            raw = inside[0].read(start - inside[0].part.start_bytes, length)
            if len(raw) == length:
                return raw
        merged = bytearray(self.blocks.read(block))
        for copy in inside:
            low, high = max(start, copy.part.start_bytes), min(start + length, copy.part.stop_bytes)
            merged[low - start : high - start] = copy.read(low - copy.part.start_bytes, high - low)
        return bytes(merged)

    def _differs(self, block: int, raw: bytes, free: NDArray[np.int64]) -> bool:
        manifest = self.blocks.image.manifest
        kind = manifest.kind[block]
        if any(raw):
            return kind > BlockKind.RAW or block_hash(raw) != manifest.raw_hash[block].tobytes()
        if kind != BlockKind.UNUSED:
            return bool(kind != BlockKind.ZERO)
        # Unused so far, and at the edge of a partition or of free ranges that aren't joined: is all of it still free?
        start, stop = block * manifest.block_bytes, block * manifest.block_bytes + len(raw)
        overlap = np.minimum(free[:, 1], stop) - np.maximum(free[:, 0], start)
        inside = sum(
            max(0, min(copy.part.stop_bytes, stop) - max(copy.part.start_bytes, start))
            for copy in self.copies
        )
        return int(overlap[overlap > 0].sum()) < inside


def _covered(ranges: NDArray[np.int64], start: int, stop: int) -> NDArray[np.bool_]:
    """Return for each block from ``start`` to ``stop`` whether one of ``ranges`` has it."""
    steps = np.zeros(stop - start + 1, np.int32)
    inside = ranges[(ranges[:, 1] > start) & (ranges[:, 0] < stop)]
    np.add.at(steps, np.maximum(inside[:, 0], start) - start, 1)
    np.add.at(steps, np.minimum(inside[:, 1], stop) - start, -1)
    return np.cumsum(steps[:-1]) > 0
