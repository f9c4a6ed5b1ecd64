"""Queueing delay from time stamps of any two clocks: a wrong delay would slow the cast or overload the network."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protocol.receiving.arrival import ArrivalMeter
from protocol.shared.feedback_timing import SENT_AT_TICK_S, sent_at_ticks
from protocol.shared.sequence import LossCounter

DELAYS_MS = st.lists(st.integers(0, 300), min_size=1, max_size=40)
STEP_S = 0.02
TOLERANCE_S = 3 * SENT_AT_TICK_S + 100e-6 * STEP_S * 40


@given(DELAYS_MS, st.floats(0, 1e6), st.floats(0, 1e6))
def test_no_queue_is_overstated(delays_ms: list[int], sender_clock: float, receiver_clock: float) -> None:
    """A wrong delay would make the cast slow down for a queue that doesn't exist."""
    meter, loss = ArrivalMeter(1000), LossCounter()
    arrived_s = least_s = math.inf
    for index, delay_ms in enumerate(delays_ms):
        loss.add(np.array([index], np.uint32))
        sent_s = index * STEP_S
        # A queue keeps its order: nothing arrives before what was sent before it.
        arrived_s = max(arrived_s + STEP_S / 4, sent_s + delay_ms / 1e3) if index else delay_ms / 1e3
        least_s = min(least_s, arrived_s - sent_s)
        meter.add(loss, sent_at_ticks(sender_clock + sent_s), receiver_clock + arrived_s)
        assert 0.0 <= meter.queue_delay_s <= arrived_s - sent_s - least_s + TOLERANCE_S


@given(st.integers(0, 250), st.integers(1, 300), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_queue_is_measured_to_a_tick(
    way_ms: int, queue_ms: int, sender_clock: float, receiver_clock: float
) -> None:
    meter, loss = ArrivalMeter(1000), LossCounter()
    for index in range(40):
        loss.add(np.array([index], np.uint32))
        sent_s = index * STEP_S
        delay_s = way_ms / 1e3 + (queue_ms / 1e3 if index >= 20 else 0.0)
        meter.add(loss, sent_at_ticks(sender_clock + sent_s), receiver_clock + sent_s + delay_s)
    assert abs(meter.queue_delay_s - queue_ms / 1e3) <= TOLERANCE_S


@given(
    st.lists(
        st.tuples(st.floats(0, 0.3), st.integers(0, 65535), st.integers(1, 50), st.integers(0, 50)),
        max_size=60,
    )
)
def test_the_figures_are_plausible_for_any_time_stamps(batches: list[tuple[float, int, int, int]]) -> None:
    """Any member of the group could forge the time stamps."""
    meter, loss = ArrivalMeter(1000), LossCounter()
    now, sequence = 50.0, 0
    for elapsed_s, sent_at, count, lost_count in batches:
        now += elapsed_s
        sequence += lost_count
        loss.add(np.arange(sequence, sequence + count, dtype=np.uint32))
        sequence += count
        meter.add(loss, sent_at, now)
        sent_count, arrived_count = meter.recent_counts
        assert 0 <= arrived_count <= sent_count
        assert 0.0 <= meter.queue_delay_s <= 3.3
        assert 0.0 <= meter.queue_delay_s <= 3.3
        assert meter.rate_bytes_per_s(now) >= 0.0
