"""A token bucket grants its burst, then its rate, and never more."""

from __future__ import annotations

from protocol.shared.token_bucket import TokenBucket


def test_burst_then_rate() -> None:
    bucket = TokenBucket(per_s=10.0, burst=3.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(100.05)
    assert bucket.take(100.15)
    assert not bucket.take(100.15)


def test_a_pause_refills_no_more_than_the_burst() -> None:
    bucket = TokenBucket(per_s=10.0, burst=3.0)
    assert bucket.take(0.0, 3.0)
    assert not bucket.take(1000.0, 3.5)
    assert bucket.take(1000.0, 3.0)


def test_a_refused_request_takes_nothing() -> None:
    bucket = TokenBucket(per_s=1.0, burst=2.0)
    assert not bucket.take(0.0, 5.0)
    assert bucket.take(0.0, 2.0)
