"""The main group: the receivers that set the cast's rate, and the handling of stragglers.

The NACKs of a slow receiver stay unanswered from the moment that it is found to be slow: its repairs would cost the
others more time than it loses by getting them later. If it stays slow, a STANDING message asks it to send no NACKs. It
keeps the blocks that it receives, and gets the rest in the *tail*, after the others have finished. In the tail the
stragglers are a main group of their own, and are compared with each other.
"""

from __future__ import annotations

import math

from protocol.model.cast_policy import CastPolicy, SlowPolicy
from protocol.model.session_records import ReceiverState
from protocol.sending.events import (
    MainGroupFinished,
    ReceiverDemoted,
    ReceiverDropped,
    ReceiverRecovered,
    ReceiverSlow,
    SenderEvent,
)
from protocol.sending.rate.capacity import Capacity
from protocol.sending.rate.rate_control import RateController
from protocol.sending.rate.stragglers import SLOW_FOR_A_MOMENT_S, StragglerChange, StragglerWatch, Verdict
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.roster import Roster
from protocol.sending.sender_statistics import SenderStatistics
from protocol.sending.transitions import ReceiverTrigger
from protocol.shared.units import format_rate
from protocol.wire.bitmap import bitmap_of
from protocol.wire.messages import Standing

_JUDGE_S_PER_RECEIVER = 1e-4
"""A comparison costs a few microseconds per receiver: with this pause, a few per cent of a processor."""


class MainGroup:
    """The straggler policy of a cast, applied to the roster's records and the rate control."""

    def __init__(
        self,
        policy: CastPolicy,
        roster: Roster,
        rate_control: RateController,
        statistics: SenderStatistics,
        now: float,
    ) -> None:
        self._drops = policy.slow_policy is SlowPolicy.DROP
        self._roster = roster
        self._rate_control = rate_control
        self._statistics = statistics
        self._watch = StragglerWatch(policy.slow_policy, policy.slow_below, policy.slow_for_s)
        self._judged_at = now

    def forget(self, record: ReceiverRecord) -> None:
        """Remove a receiver that has left, or has joined again."""
        self._rate_control.forget(record.receiver_id)
        record.slow_since = None
        record.slow_cause = None
        record.deferred = False
        record.sustainable_bytes_per_s = math.inf

    def judge(self, now: float, *, at_once: bool = False) -> list[SenderEvent]:
        """Compare the members and act on the verdicts.

        Args:
            now: monotonic seconds.
            at_once: also if the last comparison was a moment ago.
        """
        if not at_once and now - self._judged_at < self._roster.active_count * _JUDGE_S_PER_RECEIVER:
            return []
        self._judged_at = now
        capacities = self._rate_control.capacities
        members = {
            record.receiver_id: capacities.setdefault(record.receiver_id, Capacity())
            for record in self._roster.active
            if record.ready and not record.deferred
        }
        events = [self._act_on(verdict, now) for verdict in self._watch.judge(members, now)]
        for receiver_id, capacity in members.items():
            record = self._roster.records[receiver_id]
            record.slow_since = self._watch.slow_since.get(receiver_id) if record.state.active else None
            record.sustainable_bytes_per_s = (
                capacity.sustainable_bytes_per_s if capacity.limited else math.inf
            )
        self._rate_control.follow_group(now)
        return events

    def _act_on(self, verdict: Verdict, now: float) -> SenderEvent:
        record = self._roster.records[verdict.receiver_id]
        if verdict.change is not StragglerChange.RECOVERED:
            record.slow_cause = verdict.cause
        elif not record.demoted:
            record.slow_cause = None
        if verdict.change is StragglerChange.SLOW:
            return ReceiverSlow(record.receiver_id, *verdict.grounds)
        if verdict.change is StragglerChange.RECOVERED:
            return ReceiverRecovered(record.receiver_id)
        if self._drops:
            return self._drop(record, now)
        record.demoted = record.deferred = True
        return ReceiverDemoted(record.receiver_id, *verdict.grounds)

    def _drop(self, record: ReceiverRecord, now: float) -> SenderEvent:
        found = self._watch.found[record.receiver_id]
        record.finished_at = now
        record.error = (
            f"dropped: it sustains {format_rate(found.rate_bytes_per_s)} ({found.cause}) where the group sustains "
            f"{format_rate(found.group_rate_bytes_per_s)}; cast to it alone, or with --slow demote"
        )
        self._roster.advance(record, ReceiverTrigger.DROPPED)
        self.forget(record)
        return ReceiverDropped(record.receiver_id, *found.grounds)

    @property
    def over(self) -> bool:
        """Return whether only stragglers are left."""
        return all(record.deferred or record.slow_since is not None for record in self._roster.active)

    def start_tail(self, now: float) -> list[SenderEvent]:
        """Serve the remaining stragglers, or drop them if that is the policy."""
        left = list(self._roster.active)
        events = self._finish(len(left), now)
        if self._drops:
            return events + [self._drop(record, now) for record in left]
        for record in left:
            record.demoted = True
            record.deferred = False
            record.slow_since = None
        self._watch.reset()
        return events + self.judge(now, at_once=True)

    def _finish(self, left_count: int, now: float) -> list[SenderEvent]:
        """Note that the main group has finished, the first time."""
        if self._statistics.main_finished_at is not None:
            return []
        assert self._statistics.started_at is not None
        self._statistics.main_finished_at = now
        complete_count = sum(r.state is ReceiverState.COMPLETE for r in self._roster.records.values())
        return [MainGroupFinished(complete_count, left_count, now - self._statistics.started_at)]

    def standing(self, now: float) -> Standing:
        """Return the receivers whose repairs wait and those that the cast has dropped."""
        waiting = (
            record.receiver_id
            for record in self._roster.active
            if record.deferred
            or (record.slow_since is not None and now - record.slow_since > SLOW_FOR_A_MOMENT_S)
        )
        records = self._roster.records.items()
        dropped = (key for key, record in records if record.state is ReceiverState.DROPPED)
        return Standing(bitmap_of(waiting), bitmap_of(dropped))
