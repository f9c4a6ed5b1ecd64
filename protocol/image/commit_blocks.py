"""Blocks that make a disk bootable, which a receiver writes last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import MIB
from protocol.disk.disk_layout import layout_of
from protocol.image.manifest import Manifest

COMMIT_BYTES_MAX: Final = 32 * MIB
"""Limit of the blocks that are written last: they are held in memory until then."""

_EDGE_BYTES: Final = MIB
"""Size of a partition table with all that boot loaders put around it, at each end of the disk."""


def commit_blocks(manifest: Manifest) -> NDArray[np.int64]:
    """Return ``int64[n]``, ascending: the blocks to write last, without which no tool takes the disk for complete.

    These are the blocks that overlap the first and the last MiB, those with extended boot records, and the first of
    every partition: partition tables, boot sectors, superblocks. At most :data:`COMMIT_BYTES_MAX` of raw bytes,
    chosen in that order.
    """
    blocks: dict[int, None] = {}
    count_max = COMMIT_BYTES_MAX // manifest.block_bytes
    for offset in _commit_offsets(manifest):
        if len(blocks) == count_max:
            break
        if 0 <= offset < manifest.raw_bytes:
            blocks[offset // manifest.block_bytes] = None
    return np.array(sorted(blocks), np.int64)


def _commit_offsets(manifest: Manifest) -> Iterator[int]:
    """Yield offsets of bytes whose blocks are written last, the most important first."""
    yield from range(0, min(_EDGE_BYTES, manifest.raw_bytes), manifest.block_bytes)
    last_offset = manifest.raw_bytes - 1
    first_of_end = max(0, manifest.raw_bytes - _EDGE_BYTES) // manifest.block_bytes * manifest.block_bytes
    yield from range(first_of_end, last_offset + 1, manifest.block_bytes)
    layout = layout_of(manifest.metadata)
    if layout is not None:
        yield from layout.boot_record_offsets
        yield from (part.start_bytes for part in layout.partitions)
