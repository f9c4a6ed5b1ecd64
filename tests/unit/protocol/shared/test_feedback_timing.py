"""Timing of feedback: too often and a thousand receivers are the load, too rarely and the sender misses changes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from protocol.constants import REPORT_INTERVAL_MAX_S, REPORT_INTERVAL_S
from protocol.shared.feedback_timing import nack_backoff_s, report_interval_s

REPORT_BYTES = 180
MBIT = 125_000.0
GRTT_S = 0.002


@pytest.mark.parametrize("rate_mbit", [50, 200, 1000])
def test_a_small_group_is_heard_ten_times_a_second(rate_mbit: int) -> None:
    """Rate control depends on reports: rarer ones would find the rate later."""
    assert report_interval_s(8, rate_mbit * MBIT) == REPORT_INTERVAL_S


@pytest.mark.parametrize("receiver_count", [1, 8, 50, 200, 1000])
@pytest.mark.parametrize("rate_mbit", [20, 100, 1000, 10_000])
def test_reports_take_less_than_a_hundredth_of_the_cast(receiver_count: int, rate_mbit: int) -> None:
    interval_s = report_interval_s(receiver_count, rate_mbit * MBIT)
    assert receiver_count * REPORT_BYTES / interval_s < 0.01 * rate_mbit * MBIT


def test_the_senders_work_is_bounded_however_large_the_group() -> None:
    for receiver_count in (10, 100, 1000):
        assert receiver_count / report_interval_s(receiver_count, 1e9) < 500


def test_even_the_slowest_cast_hears_of_everybody() -> None:
    """A machine that is silent for longer would count as lost."""
    assert report_interval_s(1000, 1000.0) == REPORT_INTERVAL_MAX_S
    assert report_interval_s(0, 1e6) == REPORT_INTERVAL_S


def test_a_small_group_nacks_at_once() -> None:
    """In the tail every wait is lost time: a handful of receivers needs no back-off."""
    rng = random.Random(1)
    assert {nack_backoff_s(rng, GRTT_S, count) for count in range(1, 9)} == {0.0}


@pytest.mark.parametrize("receiver_count", [30, 100, 300, 1000])
@pytest.mark.parametrize("grtt_s", [0.001, 0.005, 0.05])
def test_few_receivers_nack_a_common_loss(receiver_count: int, grtt_s: float) -> None:
    """A receiver that gets the repair first sends no NACK; a thousand NACKs at once would be a flood."""
    rng = random.Random(1)
    asked = []
    for _ in range(50):
        times = sorted(nack_backoff_s(rng, grtt_s, receiver_count) for _ in range(receiver_count))
        repaired_at = times[0] + grtt_s + 0.02
        asked.append(sum(time < repaired_at for time in times))
    assert np.mean(asked) <= 20
    assert max(asked) <= 60


def test_the_first_of_a_crowd_does_not_wait_long() -> None:
    """Its repair serves the whole group, which waits for it."""
    rng = random.Random(1)
    firsts = [min(nack_backoff_s(rng, GRTT_S, 1000) for _ in range(1000)) for _ in range(20)]
    assert np.mean(firsts) < 0.1


def test_no_receiver_waits_for_ever() -> None:
    rng = random.Random(1)
    assert max(nack_backoff_s(rng, GRTT_S, 1000) for _ in range(20_000)) < 0.3
    assert min(nack_backoff_s(rng, GRTT_S, 1000) for _ in range(20_000)) >= 0.0
