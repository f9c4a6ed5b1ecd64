"""Capacity of one receiver: too slow after a knee and the room idles, too fast and it floods the switch again."""

from __future__ import annotations

import itertools
import math

import pytest

from protocol.model.bottleneck import Cause
from protocol.sending.rate.capacity import Capacity

KNEE = 25e6


def _met(cause: Cause = Cause.NETWORK, depth: float = 0.05) -> Capacity:
    capacity = Capacity()
    capacity.meet_knee(KNEE, depth, cause, 100.0)
    return capacity


def _after(capacity: Capacity, seconds: float) -> float:
    """Return the allowed rate after ``seconds`` without trouble."""
    for _ in range(round(seconds / 0.02)):
        capacity.probe(0.02)
    return capacity.allowed_bytes_per_s()


def test_receiver_without_knee_has_no_limit() -> None:
    capacity = Capacity()
    assert capacity.allowed_bytes_per_s() == math.inf
    assert not capacity.limited
    assert capacity.sustainable_bytes_per_s == 0.0, "a higher rate is not proven"


@pytest.mark.parametrize("depth", [0.03, 0.1, 0.25])
def test_rate_is_below_the_knee_then_around_it_then_beyond(depth: float) -> None:
    """The queue must drain before the rate comes back, and a limit that has moved must be noticed."""
    capacity = _met(depth=depth)
    assert capacity.allowed_bytes_per_s() == pytest.approx((1 - depth) * KNEE)
    rates = [capacity.allowed_bytes_per_s()] + [_after(capacity, 0.02) for _ in range(200)]
    assert all(later >= earlier for earlier, later in itertools.pairwise(rates))
    near = sum(abs(rate / KNEE - 1) < 0.03 for rate in rates) * 0.02
    assert near > 0.5, "most of the time it stays where the limit was"
    assert rates[-1] > 2 * KNEE, "nothing spoke against it for four seconds: the limit must have moved"


def test_disk_knee_has_no_doubling() -> None:
    """Buffers of a hundred megabytes take seconds to fill: a doubling rate would be far beyond a disk's limit then."""
    assert _after(_met(Cause.DISK), 1.5) < 1.5 * KNEE
    assert _after(_met(Cause.NETWORK), 1.5) > 2 * _after(_met(Cause.DISK), 1.5)


def test_rate_rises_only_by_probing() -> None:
    """While another receiver sets the rate, this one shows nothing about its own limit."""
    capacity = _met()
    assert capacity.allowed_bytes_per_s() == capacity.allowed_bytes_per_s() < KNEE


def test_sharing_climbs_no_faster_than_a_tcp_of_the_same_window() -> None:
    """With RFC 9438's cubic: back at the old window after K seconds, and no leap beyond it."""
    capacity = Capacity()
    rtt_s, segments_per_s, depth = 0.02, 17_000.0, 0.3
    capacity.meet_shared_knee(KNEE, depth, segments_per_s, rtt_s, 100.0)
    k_s = math.cbrt(depth * segments_per_s * rtt_s / 0.4)
    assert _after(capacity, k_s) == pytest.approx(KNEE, rel=0.01)
    assert _after(capacity, k_s) == pytest.approx((1 + depth) * KNEE, rel=0.05)


def test_a_larger_window_takes_longer_to_come_back() -> None:
    near, far = Capacity(), Capacity()
    near.meet_shared_knee(KNEE, 0.3, 17_000.0, 0.001, 100.0)
    far.meet_shared_knee(KNEE, 0.3, 17_000.0, 0.1, 100.0)
    assert _after(near, 1.0) > _after(far, 1.0)


def test_delivery_rate_beyond_the_knee_counts_as_proven() -> None:
    capacity = _met()
    assert capacity.sustainable_bytes_per_s == KNEE
    capacity.proven_bytes_per_s = 2 * KNEE
    assert capacity.sustainable_bytes_per_s == 2 * KNEE


def test_a_recovered_machine_limits_at_the_rate_that_it_has_proven() -> None:
    """Otherwise it would hold the room at the rate of its worst moment, or the room would flood it again."""
    capacity = _met()
    capacity.proven_bytes_per_s = 3 * capacity.knee_bytes_per_s
    capacity.raise_knee()
    assert capacity.knee_bytes_per_s == capacity.proven_bytes_per_s


def test_usual_loss_is_known_after_a_few_reports_and_forgets_a_bad_one() -> None:
    """Parity follows it: too slow and everything is NACKed first, too nervous and parity jumps about."""
    capacity = Capacity()
    for _ in range(5):
        capacity.learn_loss(0.05, 3.0)
    assert capacity.usual_loss == pytest.approx(0.05)
    assert capacity.loss_burst == pytest.approx(3.0)
    capacity.learn_loss(0.5, 40.0)
    assert capacity.usual_loss < 0.15
    for _ in range(40):
        capacity.learn_loss(0.0, 0.0)
    assert capacity.usual_loss < 0.002
    assert capacity.loss_burst > 1.0, "reports without a loss say nothing about bursts"
