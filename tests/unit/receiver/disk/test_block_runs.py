"""Runs of consecutive blocks: every block is in exactly one run."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from receiver.disk.block_runs import block_runs


@given(st.sets(st.integers(0, 60)), st.one_of(st.none(), st.integers(1, 7)))
def test_runs_cover_the_blocks_in_order(numbers: set[int], blocks_max: int | None) -> None:
    blocks = np.array(sorted(numbers), np.int64)
    runs = list(block_runs(blocks, blocks_max))
    assert [block for first, stop in runs for block in range(first, stop)] == sorted(numbers)
    assert all(0 < stop - first <= (blocks_max or 61) for first, stop in runs)


def test_runs_are_as_long_as_allowed() -> None:
    blocks = np.array([0, 1, 2, 3, 4, 8, 10, 11])
    assert list(block_runs(blocks)) == [(0, 5), (8, 9), (10, 12)]
    assert list(block_runs(blocks, 2)) == [(0, 2), (2, 4), (4, 5), (8, 9), (10, 12)]
