"""The receivers that set the cast's pace, and what becomes of those that can't keep up with them.

A slow receiver's NACKs are left unanswered from the moment that it is noticed: its repairs would cost the others more
than it costs itself to get them later. It is told so when it stays slow, keeps what it catches, and is served in the
*tail*, when everybody else has ended. The tail is a main group of its own: those in it are compared anew.
"""

from __future__ import annotations

import math

from protocol.model.cast_policy import CastPolicy, SlowPolicy
from protocol.model.session_records import ReceiverState
from protocol.sending.events import (
    ReceiverDemoted,
    ReceiverDropped,
    ReceiverRecovered,
    ReceiverSlow,
    SenderEvent,
)
from protocol.sending.rate.capacity import Capacity
from protocol.sending.rate.rate_control import RateController
from protocol.sending.rate.stragglers import Change, StragglerWatch, Verdict
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.roster import Roster
from protocol.sending.transitions import ReceiverTrigger
from protocol.shared.units import format_rate
from protocol.wire.bitmap import bitmap_of
from protocol.wire.messages import Standing

_TELL_SLOW_AFTER_S = 1.0
"""A receiver that is slow only for a moment isn't told to stop asking."""
_JUDGE_S_PER_RECEIVER = 1e-4
"""Comparing receivers costs a few microseconds for each of them: with this pause, a few per cent of a processor."""


class MainGroup:
    """Carries out the operator's wishes about stragglers on the roster's records and the rate control."""

    def __init__(self, policy: CastPolicy, roster: Roster, rate_control: RateController, now: float) -> None:
        self._drops = policy.slow_policy is SlowPolicy.DROP
        self._roster = roster
        self._rate_control = rate_control
        self._watch = StragglerWatch(policy.slow_policy, policy.slow_below, policy.slow_for_s)
        self._judged_at = now

    def forget(self, record: ReceiverRecord) -> None:
        """A receiver has left, or has come back as another."""
        self._rate_control.forget(record.receiver_id)
        record.slow_since = None
        record.slow_cause = None
        record.deferred = False
        record.sustainable_bytes_per_s = math.inf

    def judge(self, now: float, *, at_once: bool = False) -> list[SenderEvent]:
        """Find out who is too slow for the group, and act on it.

        Args:
            now: monotonic seconds.
            at_once: even if that was done a moment ago.
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
        events = [self._carry_out(verdict, now) for verdict in self._watch.judge(members, now)]
        for receiver_id, capacity in members.items():
            record = self._roster.records[receiver_id]
            record.slow_since = self._watch.slow_since.get(receiver_id) if record.state.active else None
            record.sustainable_bytes_per_s = (
                capacity.sustainable_bytes_per_s if capacity.limited else math.inf
            )
        self._rate_control.follow_group()
        return events

    def _carry_out(self, verdict: Verdict, now: float) -> SenderEvent:
        record = self._roster.records[verdict.receiver_id]
        if verdict.change is not Change.RECOVERED:
            record.slow_cause = verdict.cause
        elif not record.demoted:
            record.slow_cause = None
        if verdict.change is Change.SLOW:
            return ReceiverSlow(record.receiver_id, *verdict.grounds)
        if verdict.change is Change.RECOVERED:
            return ReceiverRecovered(record.receiver_id)
        if self._drops:
            return self._drop(record, now)
        record.demoted = record.deferred = True
        return ReceiverDemoted(record.receiver_id, *verdict.grounds)

    def _drop(self, record: ReceiverRecord, now: float) -> SenderEvent:
        found = self._watch.found[record.receiver_id]
        record.finished_at = now
        record.error = (
            f"dropped: it sustains {format_rate(found.rate_bytes_per_s)} ({found.cause}) where the group goes at "
            f"{format_rate(found.group_rate_bytes_per_s)}; cast to it alone, or with --slow demote"
        )
        self._roster.advance(record, ReceiverTrigger.DROPPED)
        self.forget(record)
        return ReceiverDropped(record.receiver_id, *found.grounds)

    @property
    def over(self) -> bool:
        """Whether only stragglers are left."""
        return all(record.deferred or record.slow_since is not None for record in self._roster.active)

    def begin_tail(self, now: float) -> list[SenderEvent]:
        """Serve the stragglers that are left, or do without them, as the operator wishes."""
        left = list(self._roster.active)
        if self._drops:
            return [self._drop(record, now) for record in left]
        for record in left:
            record.demoted = True
            record.deferred = False
            record.slow_since = None
        self._watch.start_over()
        return self.judge(now, at_once=True)

    def standing(self, now: float) -> Standing:
        """Whose repairs wait, and whom the cast goes on without."""
        waiting = (
            record.receiver_id
            for record in self._roster.active
            if record.deferred
            or (record.slow_since is not None and now - record.slow_since > _TELL_SLOW_AFTER_S)
        )
        records = self._roster.records.items()
        dropped = (key for key, record in records if record.state is ReceiverState.DROPPED)
        return Standing(bitmap_of(waiting), bitmap_of(dropped))
