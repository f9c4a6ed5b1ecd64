"""Pacing: a burst beyond the allowance overflows a switch, and a rate that isn't held leaves a link unused.

A simulated clock replaces the transmitter thread's: it sleeps too long, like a real one, by the test's amount.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Final

import pytest

from protocol.sending.transmission.pacing import (
    CREDIT_BYTES_MAX,
    CREDIT_S,
    PEAK_BURST_BYTES_MAX,
    PEAK_BURST_S,
    PEAK_FREE_BYTES_PER_S,
    PEAK_RATIO,
    Pacer,
)

FRAME_BYTES: Final = 1472
FRAMES_PER_CALL: Final = 44
SLEEP_MIN_S: Final = 50e-6
CALL_S: Final = 15e-6
"""Advance by the duration of a call."""

Oversleep = Callable[[random.Random], float]
Bursts = list[tuple[float, int]]
"""Times and bytes of the bursts."""


def mbit(number: float) -> float:
    return number * 1e6 / 8


def noisy(rng: random.Random) -> float:
    """Every sleep lasts up to 5 ms too long."""
    return rng.uniform(0.0, 0.005)


def usual(rng: random.Random) -> float:
    """Sleep with the kernel's timer slack, and sometimes another program's turn of up to 5 ms."""
    return 60e-6 + (rng.uniform(0.0, 0.005) if rng.random() < 0.02 else rng.expovariate(1 / 50e-6))


def never(_rng: random.Random) -> float:
    return 0.0


def burst_bytes(pacer: Pacer) -> int:
    return FRAME_BYTES * max(1, min(FRAMES_PER_CALL, pacer.burst_bytes // FRAME_BYTES))


def transmit(pacer: Pacer, now: float, until: float, oversleep: Oversleep, seed: int = 1) -> Bursts:
    rng = random.Random(seed)
    bursts = []
    while now < until:
        wait_s = pacer.wait_s(now)
        if wait_s > SLEEP_MIN_S:
            now += wait_s + oversleep(rng)
        count = burst_bytes(pacer)
        pacer.sent(count, now)
        bursts.append((now, count))
        now += CALL_S
    return bursts


def rate_of(bursts: Bursts) -> float:
    """Return the rate from the first burst to the last, which marks the end."""
    return sum(count for _at, count in bursts[:-1]) / (bursts[-1][0] - bursts[0][0])


def most_in(bursts: Sequence[tuple[float, int]], window_s: float) -> int:
    """Return the most bytes that left in any window of this length."""
    most = inside = first = 0
    for at, count in bursts:
        inside += count
        while bursts[first][0] < at - window_s:
            inside -= bursts[first][1]
            first += 1
        most = max(most, inside)
    return most


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mbit_per_s", [1, 5, 10, 50, 100, 200])
def test_the_rate_is_held_though_every_sleep_lasts_up_to_5_ms_too_long(mbit_per_s: int, seed: int) -> None:
    rate = mbit(mbit_per_s)
    bursts = transmit(Pacer(rate, 7.0), 7.0, 27.0, noisy, seed)
    assert rate_of(bursts) == pytest.approx(rate, rel=0.005)


@pytest.mark.parametrize("mbit_per_s", [10, 100, 200, 400, 800, 940])
def test_the_rate_is_held_with_the_oversleeping_of_a_usual_machine(mbit_per_s: int) -> None:
    rate = mbit(mbit_per_s)
    bursts = transmit(Pacer(rate, 7.0), 7.0, 27.0, usual)
    assert rate_of(bursts) == pytest.approx(rate, rel=0.005)


@pytest.mark.parametrize("oversleep", [never, usual, noisy])
@pytest.mark.parametrize("mbit_per_s", [1, 10, 100, 200, 400, 800, 1100])
def test_no_window_holds_more_than_both_rates_allow(mbit_per_s: int, oversleep: Oversleep) -> None:
    rate = mbit(mbit_per_s)
    pacer = Pacer(rate, 7.0)
    bursts = transmit(pacer, 7.0, 17.0, oversleep)
    peak = PEAK_RATIO * rate
    peak_burst = min(PEAK_BURST_BYTES_MAX, PEAK_BURST_S * peak)
    credit = min(CREDIT_BYTES_MAX, CREDIT_S * rate)
    for window_s in (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 1.0):
        # One call may be under way whatever its size, and may leave as much too early as isn't worth a sleep.
        by_peak = burst_bytes(pacer) + peak_burst + peak * (window_s + SLEEP_MIN_S)
        by_rate = burst_bytes(pacer) + credit + rate * (window_s + SLEEP_MIN_S)
        assert most_in(bursts, window_s) <= min(by_peak, by_rate)


def test_bursts_are_sized_by_the_rate() -> None:
    def datagrams(mbit_per_s: float) -> int:
        return burst_bytes(Pacer(mbit(mbit_per_s), 0.0)) // FRAME_BYTES

    assert [datagrams(rate) for rate in (1, 10, 20, 100, 200, 520, 4000)] == [1, 1, 1, 8, 16, 44, 44]


@pytest.mark.parametrize("mbit_per_s", [10, 100, 200, 800])
def test_without_oversleeping_bursts_leave_evenly(mbit_per_s: int) -> None:
    rate = mbit(mbit_per_s)
    pacer = Pacer(rate, 7.0)
    bursts = transmit(pacer, 7.0, 8.0, never)
    gaps = [later[0] - earlier[0] for earlier, later in itertools.pairwise(bursts)]
    assert gaps == pytest.approx([burst_bytes(pacer) / rate] * len(gaps), rel=1e-6)


def test_an_idle_time_earns_no_more_than_the_credit() -> None:
    rate = mbit(100)
    pacer = Pacer(rate, 0.0)
    transmit(pacer, 0.0, 1.0, never)
    bursts = transmit(pacer, 60.0, 61.0, never)
    extra = sum(count for _at, count in bursts) - rate * 1.0
    assert extra == pytest.approx(CREDIT_S * rate, abs=2 * burst_bytes(pacer))
    caught_up = [at for at, _count in bursts if at < 60.02]
    assert len(caught_up) * burst_bytes(pacer) <= PEAK_RATIO * rate * (0.02 + PEAK_BURST_S) + 2 * burst_bytes(
        pacer
    )


def test_the_first_burst_leaves_at_once_and_has_earned_nothing() -> None:
    pacer = Pacer(1000.0, 5.0)
    assert pacer.wait_s(5.0) == 0.0
    pacer.sent(100, 5.0)
    assert pacer.wait_s(5.0) == pytest.approx(0.1)


def test_beyond_gigabit_a_late_thread_makes_up_for_it_without_another_wait() -> None:
    rate = 4 * PEAK_FREE_BYTES_PER_S
    pacer = Pacer(rate, 0.0)
    count = 64768
    pacer.sent(count, 0.0)
    now = 3.5 * count / rate
    for _call in range(3):
        assert pacer.wait_s(now) == 0.0
        pacer.sent(count, now)
    assert pacer.wait_s(now) == pytest.approx(0.5 * count / rate)


def test_bytes_sent_too_early_are_kept_when_the_rate_changes() -> None:
    pacer = Pacer(1000.0, 0.0)
    pacer.sent(1000, 0.0)
    pacer.set_rate(2000.0, 0.0)
    assert pacer.wait_s(0.0) == pytest.approx(0.5)
    pacer.set_rate(500.0, 0.25)
    assert pacer.wait_s(0.25) == pytest.approx(1.0)


def test_arrears_shrink_with_the_rate() -> None:
    """A flood at the old rate must not follow a cut."""
    pacer = Pacer(mbit(800), 0.0)
    pacer.set_rate(mbit(8), 1.0)
    bursts = transmit(pacer, 1.0, 2.0, never)
    assert sum(count for _at, count in bursts) <= mbit(8) * (1.0 + CREDIT_S) + 2 * FRAME_BYTES


@pytest.mark.parametrize("step", [1.25, 1 / 1.25])
def test_the_rate_is_held_while_it_changes_all_the_time(step: float) -> None:
    """Automatic rates change every 20 ms: arrears must not be lost each time."""
    rng = random.Random(3)
    low, high = mbit(60), mbit(60) * step
    pacer = Pacer(low, 0.0)
    bursts: Bursts = []
    for tick in range(500):
        pacer.set_rate(high if tick % 2 else low, tick * 0.02)
        bursts += transmit(pacer, tick * 0.02, tick * 0.02 + 0.02, usual, rng.randrange(1000))
    assert sum(count for _at, count in bursts) / 10.0 == pytest.approx((low + high) / 2, rel=0.01)
