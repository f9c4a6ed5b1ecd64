"""Stragglers: a room must not wait for one bad machine, and must not give up a good one for a bad moment."""

from __future__ import annotations

import itertools
import math

import pytest

from protocol.model.bottleneck import Cause
from protocol.model.cast_policy import SlowPolicy
from protocol.model.session_records import ReceiverId
from protocol.sending.rate.capacity import Capacity
from protocol.sending.rate.stragglers import (
    SLOW_FOR_A_MOMENT_S,
    StragglerChange,
    StragglerWatch,
    Verdict,
)

FAST, SLOW = 25e6, 2.5e6
FOR_S = 10.0
REPORTED_S = SLOW_FOR_A_MOMENT_S + 0.2


class Room:
    """Members with given rates, compared every tenth of a second."""

    def __init__(self, *rates: float, policy: SlowPolicy = SlowPolicy.DEMOTE, below: float = 0.3) -> None:
        self.watch = StragglerWatch(policy, below, FOR_S)
        self.members = {ReceiverId(index): Capacity() for index in range(len(rates))}
        self.now = 100.0
        for index, rate in enumerate(rates):
            self.set_rate(index, rate)

    def set_rate(self, index: int, rate: float) -> None:
        """Let a member meet its knee at ``rate``."""
        capacity = self.members[ReceiverId(index)]
        capacity.proven_bytes_per_s = 0.0
        capacity.meet_knee(rate, 0.05, Cause.DISK, self.now)

    def judge(self, seconds: float) -> list[tuple[int, StragglerChange]]:
        """Return the verdicts of ``seconds``."""
        verdicts: list[Verdict] = []
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            verdicts += self.watch.judge(self.members, self.now)
        return [(verdict.receiver_id, verdict.change) for verdict in verdicts]

    @property
    def exempt(self) -> list[int]:
        """Members that don't limit the group."""
        return [key for key, capacity in self.members.items() if capacity.exempt]


def test_a_straggler_stops_limiting_at_once_and_is_overdue_once_after_its_time() -> None:
    room = Room(SLOW, FAST, FAST)
    assert room.judge(0.1) == []
    assert room.exempt == [0]
    assert room.judge(REPORTED_S) == [(0, StragglerChange.SLOW)], "not for a moment only"
    assert room.judge(FOR_S - REPORTED_S - 0.3) == []
    assert room.judge(1.0) == [(0, StragglerChange.OVERDUE)]
    assert room.judge(20.0) == [], "reported once"
    assert room.exempt == [0]


def test_the_grounds_name_both_rates_and_the_cause() -> None:
    """Without them the message doesn't show whether the limits are wrong or the machine is bad."""
    room = Room(SLOW, FAST, FAST)
    room.judge(0.1)
    room.now += REPORTED_S
    verdict = room.watch.judge(room.members, room.now)[0]
    assert verdict == Verdict(ReceiverId(0), StragglerChange.SLOW, SLOW, FAST, Cause.DISK)


def test_a_receiver_above_the_threshold_is_waited_for() -> None:
    """At a third of the rate it costs less to go slower than to serve it twice."""
    room = Room(0.31 * FAST, FAST, FAST)
    assert room.judge(60.0) == []
    assert room.exempt == []


@pytest.mark.parametrize("below", [0.1, 0.3, 0.8])
def test_the_operators_threshold_counts(below: float) -> None:
    assert Room(0.95 * below * FAST, FAST, FAST, below=below).judge(REPORTED_S) == [(0, StragglerChange.SLOW)]
    assert Room(1.05 * below * FAST, FAST, FAST, below=below).judge(REPORTED_S) == []


def test_waiting_means_waiting() -> None:
    room = Room(SLOW, FAST, FAST, policy=SlowPolicy.WAIT)
    assert room.judge(60.0) == []
    assert room.exempt == []


def test_a_single_receiver_is_never_too_slow() -> None:
    room = Room(SLOW)
    assert room.judge(60.0) == []
    assert room.exempt == []


def test_most_of_the_room_cannot_be_stragglers() -> None:
    """One fast machine among slow ones mustn't have the rest demoted."""
    room = Room(SLOW, SLOW, SLOW, FAST)
    assert room.judge(60.0) == []


def test_of_two_the_faster_one_is_the_group() -> None:
    assert Room(SLOW, FAST).judge(REPORTED_S) == [(0, StragglerChange.SLOW)]


def test_members_that_meet_a_common_limit_one_after_the_other_are_not_reported() -> None:
    """In a room of slow machines the first report would be of all but one, and the next one that they keep up."""
    room = Room(SLOW, FAST, FAST)
    assert room.judge(0.5) == []
    for index in (1, 2):
        room.set_rate(index, 1.2 * SLOW)
    assert room.judge(60.0) == []
    assert room.exempt == []


def test_a_bad_moment_is_forgiven() -> None:
    """A log-on script slows a machine down for seconds; to be demoted for that would cost it the main group."""
    room = Room(SLOW, FAST, FAST)
    room.judge(REPORTED_S)
    assert room.judge(2.0) == [], "nothing is proven"
    capacity = room.members[ReceiverId(0)]
    capacity.proven_bytes_per_s = FAST
    assert room.judge(REPORTED_S) == [(0, StragglerChange.RECOVERED)]
    assert room.exempt == []
    assert capacity.knee_bytes_per_s == FAST, "its old limit would hold the group down"
    room.set_rate(0, SLOW)
    assert room.judge(FOR_S + 1) == [(0, StragglerChange.SLOW), (0, StragglerChange.OVERDUE)], "a new period"


def test_recovery_has_a_hysteresis() -> None:
    room = Room(SLOW, FAST, FAST)
    room.judge(REPORTED_S)
    capacity = room.members[ReceiverId(0)]
    capacity.proven_bytes_per_s = 0.35 * FAST
    assert room.judge(FOR_S) == [(0, StragglerChange.OVERDUE)], "just above the threshold"
    capacity.proven_bytes_per_s = 0.5 * FAST
    assert room.judge(REPORTED_S) == [(0, StragglerChange.RECOVERED)]


def test_a_good_moment_is_no_recovery() -> None:
    """A group that stands still for seconds, on a busy host, makes nobody fast."""
    room = Room(SLOW, FAST, FAST)
    room.judge(REPORTED_S)
    for index in (1, 2):
        room.set_rate(index, SLOW)
    assert room.judge(SLOW_FOR_A_MOMENT_S - 1.0) == []
    assert room.exempt == [0]
    for index in (1, 2):
        room.set_rate(index, FAST)
    assert room.judge(FOR_S) == [(0, StragglerChange.OVERDUE)]


def test_an_unreported_moment_is_over_at_once() -> None:
    """It would hold no other back, but its repairs would wait."""
    room = Room(SLOW, FAST, FAST)
    room.judge(1.0)
    room.set_rate(0, FAST)
    assert room.judge(0.1) == []
    assert room.exempt == []


def test_a_path_that_loses_nearly_everything_is_slow_without_any_queue() -> None:
    """It takes the group's rate and gets a tenth of it."""
    room = Room(FAST, FAST, FAST)
    lossy = room.members[ReceiverId(0)]
    lossy.knee_bytes_per_s = math.inf
    lossy.proven_bytes_per_s, lossy.usual_loss = 0.1 * FAST, 0.9
    assert room.judge(FOR_S + 1) == [(0, StragglerChange.SLOW), (0, StragglerChange.OVERDUE)]


def test_member_that_left_is_forgotten() -> None:
    """A machine that was demoted, started again and is slow again must be demoted again."""
    room = Room(SLOW, FAST, FAST)
    room.judge(FOR_S + 1)
    gone = room.members.pop(ReceiverId(0))
    room.judge(1.0)
    assert not room.watch.slow_since
    room.members[ReceiverId(0)] = gone
    assert room.judge(FOR_S + 1) == [(0, StragglerChange.SLOW), (0, StragglerChange.OVERDUE)]


def test_when_only_stragglers_are_left_they_are_the_group() -> None:
    """In the tail they go at the pace of the best of them, and one much slower than that waits once more."""
    room = Room(SLOW, SLOW, 0.1 * SLOW, FAST)
    room.judge(1.0)
    del room.members[ReceiverId(3)]
    room.watch.reset()
    assert room.judge(REPORTED_S) == [(2, StragglerChange.SLOW)]
    assert room.exempt == [2]


# -- trials --------------------------------------------------------------------------------------------------------


def _held_back() -> Room:
    """Return a room whose slow member has held the others at its rate so far."""
    room = Room(SLOW, FAST, FAST)
    for index in (1, 2):
        capacity = room.members[ReceiverId(index)]
        capacity.knee_bytes_per_s = math.inf
        capacity.proven_bytes_per_s = SLOW
    return room


def test_trial_finds_a_straggler_that_held_the_group_from_the_start() -> None:
    """Without a trial, a machine that is slow from the start would hold the room for the whole cast."""
    room = _held_back()
    assert room.judge(0.1) == []
    assert room.exempt == [0], "before it has slowed the others down"
    for index in (1, 2):
        room.members[ReceiverId(index)].proven_bytes_per_s = 4 * SLOW
    assert room.judge(REPORTED_S) == [(0, StragglerChange.SLOW)]
    room.judge(5.0)
    assert room.exempt == [0]


def test_trial_that_proves_nothing_ends_and_returns_ever_more_rarely() -> None:
    """It floods the limiting receiver for a second: worth it now and then, not all the time."""
    room = _held_back()
    trials = []
    for _ in range(1200):
        before = bool(room.exempt)
        room.judge(0.1)
        if room.exempt and not before:
            trials.append(room.now)
    assert room.judge(0.1) == []
    pauses = [later - earlier for earlier, later in itertools.pairwise(trials)]
    assert 3 <= len(trials) <= 6
    assert pauses == sorted(pauses)
    assert pauses[-1] > 1.5 * pauses[0]
    assert pauses[0] > 10, "a tenth of the time"


def test_a_trial_ends_when_another_meets_its_limit() -> None:
    room = _held_back()
    room.judge(1.2)
    assert room.exempt == [0]
    room.set_rate(1, 1.1 * SLOW)
    room.judge(0.1)
    assert room.exempt == []


def test_room_behind_one_slow_link_has_no_trial() -> None:
    """All meet the same limit: without any of them, the rest would only lose datagrams."""
    room = Room(*[SLOW] * 8)
    assert room.judge(60.0) == []
    assert room.exempt == []
