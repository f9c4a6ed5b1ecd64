"""Iteration over masks of blocks by windows: an array of all set indices would have 8 bytes per block.

A mask is ``bool[block_count]``, 4 MiB for a disk of a TiB; a window's temporaries have half a MiB.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

WINDOW_BLOCKS: Final = 1 << 16
"""Searched in 20 µs, much longer than Python's own work for each window."""


def windows(block_count: int, start: int = 0) -> Iterator[slice]:
    """Yield slices that cover the blocks from ``start`` on, ascending."""
    for first in range(start, block_count, WINDOW_BLOCKS):
        yield slice(first, min(first + WINDOW_BLOCKS, block_count))


def iter_set_blocks(mask: NDArray[np.bool_], start: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield the indices from ``start`` on at which ``mask`` is set, ascending, window by window; no empty arrays.

    The mask may change during the iteration: each window is read when its indices are requested.
    """
    for window in windows(mask.size, start):
        indices = np.flatnonzero(mask[window])
        if indices.size:
            yield indices + window.start


def first_set(mask: NDArray[np.bool_], start: int, count_max: int) -> NDArray[np.int64]:
    """Return the first ``count_max`` indices from ``start`` on at which ``mask`` is set, ascending."""
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    missing_count = count_max
    for indices in iter_set_blocks(mask, start):
        if missing_count <= 0:
            break
        found.append(indices[:missing_count])
        missing_count -= found[-1].size
    return np.concatenate(found)


def sample_set(
    mask: NDArray[np.bool_], count_max: int, rng: random.Random, start: int = 0
) -> NDArray[np.int64]:
    """Return ``count_max`` random indices from ``start`` on at which ``mask`` is set, or all of fewer; ascending."""
    set_count = int(np.count_nonzero(mask[start:]))
    ranks = np.array(sorted(rng.sample(range(set_count), min(count_max, set_count))), np.int64)
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    passed_count = 0
    for indices in iter_set_blocks(mask, start):
        within = ranks[(ranks >= passed_count) & (ranks < passed_count + indices.size)]
        found.append(indices[within - passed_count])
        passed_count += indices.size
    return np.concatenate(found)
