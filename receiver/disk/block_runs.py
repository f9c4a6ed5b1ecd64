"""Runs of consecutive block numbers, each of which the disk handles in one call."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def block_runs(blocks: NDArray[np.int64], blocks_max: int | None = None) -> Iterator[tuple[int, int]]:
    """Split ``blocks`` (ascending, distinct) into half-open runs of at most ``blocks_max`` consecutive numbers."""
    if blocks.size == 0:
        return
    starts = np.concatenate(([0], np.flatnonzero(np.diff(blocks) != 1) + 1))
    lasts = np.append(starts[1:], blocks.size) - 1
    for first, last in zip(blocks[starts].tolist(), blocks[lasts].tolist(), strict=True):
        step = blocks_max or last + 1 - first
        for start in range(first, last + 1, step):
            yield start, min(start + step, last + 1)
