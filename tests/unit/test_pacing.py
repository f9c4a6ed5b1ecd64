"""Pacing: a burst beyond the allowance is what overflows a switch."""

from __future__ import annotations

from protocol.pacing import TokenBucket


def _send_times(bucket: TokenBucket, sizes: list[int], now: float) -> list[float]:
    times = []
    for size in sizes:
        now += bucket.delay_s(size, now)
        times.append(now)
    return times


def test_rate_and_burst_hold() -> None:
    times = _send_times(TokenBucket(1000.0, 500, 10.0), [100] * 50, 10.0)
    assert times[:6] == [10.0] * 6
    for index, time in enumerate(times):
        assert 100 * index <= (time - 10.0) * 1000.0 + 500 + 1e-6
    assert abs(times[-1] - (10.0 + (49 * 100 - 500) / 1000.0)) < 1e-9


def test_idle_time_earns_no_more_than_the_burst() -> None:
    bucket = TokenBucket(1000.0, 200, 0.0)
    times = _send_times(bucket, [100] * 5, 60.0)
    assert times[:3] == [60.0] * 3
    assert times[3] > 60.0


def test_a_change_of_rate_keeps_the_debt_in_bytes() -> None:
    bucket = TokenBucket(1000.0, 0, 0.0)
    bucket.delay_s(1000, 0.0)
    bucket.set_rate(2000.0, 0.0)
    assert bucket.delay_s(1, 0.0) == 0.5
