"""Masks by windows give the same results as the whole mask, wherever the windows end."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.shared.block_masks import WINDOW_BLOCKS, first_set, iter_set_blocks, sample_set, windows

COUNT = 3 * WINDOW_BLOCKS + 1000


def mask_of(share: float) -> NDArray[np.bool_]:
    return np.random.default_rng(4).random(COUNT) < share


@pytest.mark.parametrize("start", [0, 5, WINDOW_BLOCKS, COUNT - 1, COUNT, COUNT + 1])
def test_windows_cover_every_block_once(start: int) -> None:
    covered = [block for window in windows(COUNT, start) for block in range(window.start, window.stop)]
    assert covered == list(range(start, COUNT))


@pytest.mark.parametrize("share", [0.0, 0.00002, 0.5, 1.0])
@pytest.mark.parametrize("start", [0, 1, WINDOW_BLOCKS - 1, 2 * WINDOW_BLOCKS, COUNT])
def test_places_are_those_of_the_whole_mask(share: float, start: int) -> None:
    mask = mask_of(share)
    places = start + np.flatnonzero(mask[start:])
    windowed = list(iter_set_blocks(mask, start))
    assert all(part.size for part in windowed)
    assert np.array_equal(np.concatenate([places[:0], *windowed]), places)
    for count in (0, 1, 1000, WINDOW_BLOCKS + 1, COUNT):
        assert np.array_equal(first_set(mask, start, count), places[:count])
    for count in (1, 256, COUNT):
        sample = sample_set(mask, count, random.Random(1), start)
        assert np.array_equal(sample, np.unique(sample))
        assert sample.size == min(count, places.size)
        assert np.isin(sample, places).all()


def test_every_place_is_drawn() -> None:
    """A sample that ignored one end would take a used disk for an empty one."""
    mask = np.zeros(COUNT, np.bool_)
    mask[[0, WINDOW_BLOCKS - 1, WINDOW_BLOCKS, COUNT - 1]] = True
    rng = random.Random(2)
    drawn = {int(sample_set(mask, 1, rng)[0]) for _ in range(100)}
    assert drawn == {0, WINDOW_BLOCKS - 1, WINDOW_BLOCKS, COUNT - 1}


def test_blocks_cleared_during_the_iteration_are_not_found() -> None:
    mask = np.ones(COUNT, np.bool_)
    found = 0
    for places in iter_set_blocks(mask):
        found += places.size
        mask[places] = False
        mask[-10:] = False
    assert found == COUNT - 10


def test_a_full_mask_is_iterated_without_an_array_of_its_places() -> None:
    mask = np.ones(1 << 22, np.bool_)
    tracemalloc.start()
    for _ in iter_set_blocks(mask):
        pass
    first_set(mask, 0, 1000)
    sample_set(mask, 256, random.Random(3))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < mask.nbytes
