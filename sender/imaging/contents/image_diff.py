"""The difference between two images: blocks, bytes, partitions, and the data that a delta cast would send.

Only the manifests are read. Rows are compared in steps, so that the memory doesn't depend on the size of the disks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.disk.disk_layout import layout_of
from protocol.disk.partition_table import DiskLayout, Partition
from protocol.image.manifest import BlockKind, Manifest

_ROWS_PER_STEP: Final = 1 << 17
"""Two columns of hashes of so many rows are 8 MiB."""


@dataclasses.dataclass(frozen=True, slots=True)
class RangeDiff:
    """The difference within a range of the newer disk.

    Attributes:
        block_count: blocks of the newer image in the range.
        changed_count: blocks whose content differs, or which the older image has no content for.
        changed_bytes: raw bytes of these blocks.
        freed_count: blocks that only the older image has content for; the newer one leaves them as they are.
        sent_bytes: stored bytes that a delta cast sends to a disk with the older image.
        stored_bytes: stored bytes that a cast to an empty disk sends.
    """

    block_count: int = 0
    changed_count: int = 0
    changed_bytes: int = 0
    freed_count: int = 0
    sent_bytes: int = 0
    stored_bytes: int = 0

    def plus(self, other: RangeDiff) -> RangeDiff:
        """Return the sum of two ranges."""
        return RangeDiff(
            *(getattr(self, name) + getattr(other, name) for name in RangeDiff.__dataclass_fields__)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionDiff:
    """The difference within a partition of the newer disk.

    A block on a partition's edge counts for each partition that it overlaps.
    """

    number: int
    name: str
    filesystem: str
    start_bytes: int
    size_bytes: int
    moved: bool
    """The older disk has no partition with this number, start and size."""
    blocks: RangeDiff


@dataclasses.dataclass(frozen=True, slots=True)
class ImageDiff:
    """The difference between two images.

    Attributes:
        comparable: False if their block sizes differ: a delta cast then sends everything.
        identical: the images have the same id.
        layout_changed: partition tables differ.
        whole: the whole newer disk.
        outside: blocks that belong to no partition.
        partitions: partitions of the newer disk.
    """

    older_id: str
    newer_id: str
    older_raw_bytes: int
    newer_raw_bytes: int
    block_bytes: int
    comparable: bool
    identical: bool
    layout_changed: bool
    whole: RangeDiff
    outside: RangeDiff
    partitions: tuple[PartitionDiff, ...]


def diff_images(older: Manifest, newer: Manifest) -> ImageDiff:
    """Compare two images; blocks at the same place are compared, as a delta cast does.

    Takes a second for a TiB of disk, and some MiB of memory.

    Raises:
        ImageChangedError, StorageError: a manifest that is read on demand can't be read any more.
    """
    comparable = older.block_bytes == newer.block_bytes
    layout, older_layout = layout_of(newer.metadata), layout_of(older.metadata)
    spans = _partition_spans(layout, newer)
    whole, outside = RangeDiff(), RangeDiff()
    parts = [RangeDiff() for _ in spans]
    for start, rows in _compared(older if comparable else None, newer):
        whole = whole.plus(rows.count(0, rows.block_count))
        inside = np.zeros(rows.block_count, np.bool_)
        for index, (first, last) in enumerate(spans):
            low, high = max(0, first - start), min(rows.block_count, last - start)
            if low < high:
                parts[index] = parts[index].plus(rows.count(low, high))
                inside[low:high] = True
        outside = outside.plus(rows.only(~inside).count(0, rows.block_count))
    known = {(each.number, each.start_bytes, each.size_bytes) for each in _partitions(older_layout)}
    return ImageDiff(
        older.image_id.hex(),
        newer.image_id.hex(),
        older.raw_bytes,
        newer.raw_bytes,
        newer.block_bytes,
        comparable,
        older.image_id == newer.image_id,
        layout != older_layout,
        whole,
        outside,
        tuple(
            PartitionDiff(
                each.number,
                each.name,
                each.filesystem,
                each.start_bytes,
                each.size_bytes,
                (each.number, each.start_bytes, each.size_bytes) not in known,
                blocks,
            )
            for each, blocks in zip(_partitions(layout), parts, strict=True)
        ),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Rows:
    """Compared rows: one value for each block of the newer image."""

    counted: NDArray[np.bool_]
    changed: NDArray[np.bool_]
    freed: NDArray[np.bool_]
    raw_bytes: NDArray[np.int64]
    stored_bytes: NDArray[np.uint32]

    @property
    def block_count(self) -> int:
        return len(self.counted)

    def only(self, mask: NDArray[np.bool_]) -> _Rows:
        return dataclasses.replace(
            self,
            counted=self.counted & mask,
            changed=self.changed & mask,
            freed=self.freed & mask,
            stored_bytes=np.where(mask, self.stored_bytes, 0).astype(np.uint32),
        )

    def count(self, low: int, high: int) -> RangeDiff:
        changed, stored = self.changed[low:high], self.stored_bytes[low:high]
        return RangeDiff(
            int(self.counted[low:high].sum()),
            int(changed.sum()),
            int(self.raw_bytes[low:high][changed].sum()),
            int(self.freed[low:high].sum()),
            int(stored[changed].sum(dtype=np.int64)),
            int(stored.sum(dtype=np.int64)),
        )


def _compared(older: Manifest | None, newer: Manifest) -> Iterator[tuple[int, _Rows]]:
    """Yield the first block and the compared rows of each step; ``older`` is None if nothing can be kept."""
    for start in range(0, newer.block_count, _ROWS_PER_STEP):
        stop = min(newer.block_count, start + _ROWS_PER_STEP)
        rows = slice(start, stop)
        count = stop - start
        has_content = newer.kind[rows] != BlockKind.UNUSED
        had_content = np.zeros(count, np.bool_)
        same = np.zeros(count, np.bool_)
        common = 0 if older is None else max(0, min(stop, older.block_count) - start)
        if older is not None and common:
            there = slice(start, start + common)
            had_content[:common] = older.kind[there] != BlockKind.UNUSED
            same[:common] = (older.raw_hash[there] == newer.raw_hash[there]).all(axis=1)
        raw_bytes = np.full(count, newer.block_bytes, np.int64)
        raw_bytes[-1] = newer.raw_length(stop - 1)
        changed = has_content & ~(had_content & same)
        yield (
            start,
            _Rows(
                np.ones(count, np.bool_),
                changed,
                had_content & ~has_content,
                raw_bytes,
                newer.stored_bytes[rows],
            ),
        )


def _partitions(layout: DiskLayout | None) -> list[Partition]:
    return [] if layout is None else [each for each in layout.partitions if not each.is_extended]


def _partition_spans(layout: DiskLayout | None, manifest: Manifest) -> list[tuple[int, int]]:
    """Return the half-open ranges of blocks that partitions overlap."""
    block_bytes = manifest.block_bytes
    return [
        (each.start_bytes // block_bytes, min(manifest.block_count, -(-each.stop_bytes // block_bytes)))
        for each in _partitions(layout)
    ]
