"""Parity: too little and every block is NACKed, too much and all receivers wait for symbols that none needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest

from protocol.constants import BURST_SYMBOLS, SOURCE_SYMBOLS_MAX, SYMBOLS_MAX
from protocol.sending.rate.parity import ParityPlanner
from protocol.sending.transmission.demand import Demand, SegmentList

K = 183
"""A full block of 256 KiB."""


def _planner(losses: Iterable[tuple[float, float]]) -> ParityPlanner:
    planner = ParityPlanner()
    planner.update(losses)
    return planner


def _nack_count(losses: list[float], parity: int) -> float:
    """Return the mean number of receivers per block that miss symbols, with independent losses."""
    lost = np.random.default_rng(1).binomial(K + parity, losses, (2000, len(losses)))
    return float((lost > parity).sum(axis=1).mean())


def test_clean_network_has_no_parity() -> None:
    for planner in (ParityPlanner(), _planner([]), _planner([(0.0, 1.0)] * 1000)):
        assert planner.symbols(K) == 0
        assert planner.interleave_depth == 1
        assert planner.loss == 0.0


@pytest.mark.parametrize("loss", [0.002, 0.01, 0.05, 0.1])
@pytest.mark.parametrize("receiver_count", [1, 4, 30, 1000])
def test_most_blocks_decode_without_a_nack(loss: float, receiver_count: int) -> None:
    """A room at 5 % that sends a NACK for every block waits a round trip for every block."""
    parity = _planner([(loss, 1.0)] * receiver_count).symbols(K)
    assert _nack_count([loss] * receiver_count, parity) < 0.8


@pytest.mark.parametrize("receiver_count", [1, 4, 30])
def test_parity_is_hardly_more_than_needed(receiver_count: int) -> None:
    parity = _planner([(0.05, 1.0)] * receiver_count).symbols(K)
    assert _nack_count([0.05] * receiver_count, parity - 4) > 0.3


def test_one_lossy_machine_costs_the_others_less_than_a_lossy_room() -> None:
    room = _planner([(0.05, 1.0)] * 30).symbols(K)
    one = _planner([(0.05, 1.0)] + [(0.0, 1.0)] * 29).symbols(K)
    assert 0 < one < room


def test_parity_grows_with_loss_and_receivers() -> None:
    by_loss = [_planner([(loss / 1000, 1.0)] * 10).symbols(K) for loss in range(0, 300, 7)]
    by_count = [_planner([(0.01, 1.0)] * count).symbols(K) for count in (1, 2, 5, 20, 100, 1000)]
    by_k = [_planner([(0.02, 1.0)] * 10).symbols(k) for k in range(1, SOURCE_SYMBOLS_MAX + 1)]
    for counts in (by_loss, by_count, by_k[: SYMBOLS_MAX * 4 // 5]):
        assert all(later >= earlier for earlier, later in itertools.pairwise(counts))


@pytest.mark.parametrize("loss", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("burst", [1.0, 44.0, 1e6])
def test_parity_stays_within_the_symbols_of_a_block(loss: float, burst: float) -> None:
    """Parity beyond n, or twice the data, because one cable is cut, would stop the room."""
    planner = _planner([(loss, burst)] * 100)
    assert 0.0 <= planner.loss <= 0.5
    for k in (1, 10, K, SOURCE_SYMBOLS_MAX):
        assert 0 <= planner.symbols(k) <= min(SYMBOLS_MAX - k, max(1, 0.31 * k))


def test_parity_follows_the_losses() -> None:
    planner = _planner([(0.05, 1.0)])
    high = planner.symbols(K)
    planner.update([(0.05, 1.0)])
    assert planner.symbols(K) == high
    planner.update([(0.0, 1.0)])
    assert planner.symbols(K) == 0


@pytest.mark.parametrize("phase", range(0, BURST_SYMBOLS, 4))
def test_parity_alone_repairs_every_twentieth_super_datagram(phase: int) -> None:
    """Without interleaving a block that loses a burst has lost a quarter; with it, each block loses a little."""
    planner = _planner([(0.05, float(BURST_SYMBOLS))])
    demand = Demand(1, np.full(64, K, np.uint8))
    demand.want(None)
    segments = SegmentList(64 * SYMBOLS_MAX)
    demand.plan_pass(segments, 0, planner.symbols, planner.interleave_depth)
    rows = segments.array()
    block = np.repeat(rows["block"], rows["count"])
    lost = (np.arange(block.size) + phase) // BURST_SYMBOLS % 20 == 7
    arrived = np.bincount(block[~lost], minlength=64)
    assert (arrived >= K).mean() > 0.9
    assert block.size <= 1.15 * 64 * K


def test_losses_that_fade_are_no_new_plan() -> None:
    """Usual losses shrink by a tenth with each report: those of 1000 receivers would keep a core busy for nothing."""
    planner = _planner([(0.0004 * 0.9**index, 1.0) for index in range(1000)])
    assert planner._levels == ()
    assert planner.symbols(K) == 0


def test_rare_bursts_do_not_interleave() -> None:
    """Interleaving costs every receiver processor time and buffers."""
    assert _planner([(0.0001, float(BURST_SYMBOLS))]).interleave_depth == 1
    assert _planner([(0.05, 1.0)]).interleave_depth == 1
    assert _planner([(0.05, float(BURST_SYMBOLS)), (0.0, 0.0)]).interleave_depth > 1
