"""The sender's side of a cast, sans-IO: receivers, plans of symbols to send, and control messages to the group.

::

    GATHERING ── enough receivers joined and hold the manifest ──► CASTING ── no receiver is active ──► ENDED
        │                                                             │                                   ▲
        └──────── no receiver joined in time, cancelled, failed ──────┴───────────────────────────────────┘

The shell calls from one thread at a time. It requests plans as long as there are any, reports transmitted batches,
multicasts the control datagrams that are due, and passes in feedback and the control API's requests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from protocol.constants import (
    DATA_HEADER_BYTES,
    SOURCE_SYMBOLS_MAX,
)
from protocol.errors import JoinRefusedError
from protocol.image.manifest import Manifest
from protocol.model.bottleneck import NO_BOTTLENECK, Bottleneck, Cause
from protocol.model.cast_policy import CastPolicy
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import (
    CastParameters,
    CompletionReport,
    JoinGrant,
    JoinRequest,
    ReceiverId,
)
from protocol.sending.cast_bottleneck import CastBottleneck
from protocol.sending.events import (
    CastFinished,
    CastingStarted,
    GatheringTimedOut,
    ReceiverCompleted,
    ReceiverFailed,
    ReceiverJoined,
    ReceiverLost,
    ReceiverReturned,
    SenderEvent,
)
from protocol.sending.feedback.feedback_inbox import FeedbackInbox
from protocol.sending.feedback.grtt import GrttEstimator
from protocol.sending.feedback.liveness import Liveness
from protocol.sending.feedback.poisoned_reports import PoisonedReports
from protocol.sending.feedback.repair_requests import RepairRequests
from protocol.sending.feedback.report_intake import ReportIntake, frame_bytes_per_raw
from protocol.sending.gathering import Attendance, Gathering
from protocol.sending.group_messages import GroupMessages, GroupState, Sweep
from protocol.sending.join_grants import JoinGrants
from protocol.sending.main_group import MainGroup
from protocol.sending.planner import Planner
from protocol.sending.rate.parity import ParityPlanner
from protocol.sending.rate.rate_control import RateController
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.roster import Roster
from protocol.sending.sender_run import SenderRun
from protocol.sending.sender_statistics import SenderStatistics
from protocol.sending.transitions import CAST_TRANSITIONS, CastTrigger, ReceiverTrigger
from protocol.sending.transmission.cast_demand import CastDemand
from protocol.sending.transmission.send_plan import SendPlan
from protocol.sending.transmission.transmission_meter import TransmissionMeter
from protocol.shared.feedback_timing import report_interval_s
from protocol.trust.group_keys import GroupKeys
from protocol.wire.messages import BlockDigests, Nack, Poisoned, Report

_TIMER_S = 0.1
"""Interval of the checks for timeouts, stragglers, loss and bottleneck."""


class SenderSession:
    """The sender's session of one cast. Not thread-safe: the shell holds one lock around every call."""

    def __init__(
        self,
        parameters: CastParameters,
        manifest: Manifest,
        *,
        policy: CastPolicy,
        rng: random.Random,
        secrets: Callable[[int], bytes],
        now: float,
    ) -> None:
        """Start to gather receivers.

        Args:
            parameters: the parameters that every receiver gets.
            manifest: the image's manifest.
            policy: the operator's policy.
            rng: randomness for the first sequence number.
            secrets: function from ``n`` to ``n`` unpredictable bytes, for the keys of run and receivers.
            now: monotonic seconds.
        """
        self.parameters = parameters
        self.policy = policy
        self.state = CastState.GATHERING
        self.outcome = SessionOutcome.COMPLETE
        self.reason = ""
        self.paused = False
        self.statistics = SenderStatistics()
        self._demand = CastDemand.of(parameters, manifest)
        self.manifest_demand = self._demand.manifest
        self.image_demand = self._demand.image
        self.rate_control = RateController(
            fixed_bytes_per_s=policy.rate_bytes_per_s,
            maximum_bytes_per_s=policy.rate_max_bytes_per_s,
            frame_bytes=DATA_HEADER_BYTES + parameters.symbol_bytes,
            share=policy.share,
            now=now,
        )
        self._run = SenderRun(parameters, secrets)
        self._poisoned = PoisonedReports(self._demand, parameters.symbol_bytes, secrets)
        self._roster = Roster(secrets)
        self._liveness = Liveness(self._roster, policy.receiver_timeout_s)
        self._inbox = FeedbackInbox(parameters.cast_id, self._roster)
        self.gathering = Gathering(policy, self._roster, now)
        """The wait for receivers, which the operator may end."""
        self._main_group = MainGroup(policy, self._roster, self.rate_control, self.statistics, now)
        self._parity = ParityPlanner()
        self._frame_bytes = DATA_HEADER_BYTES + parameters.symbol_bytes
        self._repair_requests = RepairRequests(self._demand, self.statistics, self._frame_bytes)
        self._grtt = GrttEstimator()
        self._grants = JoinGrants(parameters, manifest, self._run, self._roster, self._grtt)
        self._events: list[SenderEvent] = []
        first_sequence = rng.getrandbits(32)
        self._planner = Planner(self._demand, self._parity, self._poisoned, self._run, first_sequence)
        self._transmission = TransmissionMeter(first_sequence, now)
        self._bottleneck = CastBottleneck(self._demand, self._transmission, self.rate_control, self._roster)
        self._messages = GroupMessages(parameters, self._run.signer, self.statistics, now)
        source_symbols = manifest.source_symbols(parameters.symbol_bytes, parameters.tag_bytes)
        self._reports = ReportIntake(
            self.rate_control,
            self._grtt,
            self._messages.echoes,
            frame_bytes=self._frame_bytes,
            frame_bytes_per_raw=frame_bytes_per_raw(source_symbols, parameters, self._frame_bytes),
        )
        self._timeouts_at = now + _TIMER_S

    # -- state for the shell ----------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Return whether the cast has ended and every end of transmission was returned for sending."""
        return self.state is CastState.ENDED and self._messages.end_left_count == 0

    @property
    def rate_bytes_per_s(self) -> float:
        """Return the current rate to pace to."""
        return self.rate_control.rate_bytes_per_s

    @property
    def achieved_bytes_per_s(self) -> float:
        """Return the measured rate of frames."""
        return self._transmission.achieved_bytes_per_s

    @property
    def keys(self) -> GroupKeys:
        """Return the keys of the current run."""
        return self._run.keys

    @property
    def grtt_s(self) -> float:
        """Return the group's round-trip time."""
        return self._grtt.grtt_s

    @property
    def receivers(self) -> Mapping[ReceiverId, ReceiverRecord]:
        """Return all receivers that ever joined."""
        return self._roster.records

    @property
    def active_count(self) -> int:
        """Return the number of receivers that the cast still serves."""
        return self._roster.active_count

    @property
    def rejects(self) -> dict[str, int]:
        """Return the rejected feedback datagrams by reason."""
        return self._inbox.rejects

    @property
    def foreign_version(self) -> int | None:
        """Return the wire version of feedback of another version than this program's; None for none."""
        return self._inbox.foreign_version

    @property
    def parity(self) -> float:
        """Return the proactive repair symbols per source symbol of a full block."""
        k = self.parameters.block_symbols_max
        return self._parity.symbols(min(k, SOURCE_SYMBOLS_MAX)) / k

    @property
    def interleave_depth(self) -> int:
        """Return the number of blocks that are sent together, in stripes."""
        return self._parity.interleave_depth

    @property
    def bottleneck(self) -> Bottleneck:
        """Return the current bottleneck."""
        if self.state is not CastState.CASTING or self.paused:
            return NO_BOTTLENECK
        return self._bottleneck.current

    @property
    def bottleneck_seconds(self) -> dict[Bottleneck, float]:
        """Return the duration of each bottleneck so far."""
        return self._bottleneck.seconds

    @property
    def held_by_ceiling(self) -> bool:
        """Return whether only the operator's ceiling, or no known bottleneck, limits the rate."""
        return self.bottleneck.cause in (Cause.CEILING, Cause.NONE)

    def sending_overdue_s(self, now: float) -> float:
        """Return for how many seconds available data hasn't been sent; 0 without data or while paused."""
        if self.state is not CastState.CASTING or self.paused or self.image_demand.idle:
            return 0.0
        return now - max(self._transmission.transmitted_at, self.statistics.started_at or now)

    def next_events(self) -> list[SenderEvent]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    # -- the control API --------------------------------------------------------------------------------------

    def join(self, request: JoinRequest, now: float, *, address_count_max: int | None = None) -> JoinGrant:
        """Admit a receiver, with a new record or its earlier one.

        The earlier record is the one of the same run of the agent or, for a restarted machine, of a receiver of the
        same name and address that was lost, failed or was dropped, or whose hardware is the same and that has just
        become silent.

        Args:
            request: the request to join.
            now: monotonic seconds.
            address_count_max: most active receivers at one address; None for no limit.

        Raises:
            JoinRefusedError: the cast has ended or is full, or the need-bitmap doesn't fit the image.
        """
        if self.state is CastState.ENDED:
            raise JoinRefusedError("the cast has ended: wait for the next one or start it again")
        self._grants.check_need(request.need)
        record, rejoined = self._roster.admit(
            request, now, address_count_max, report_interval_s=self._report_interval_s
        )
        if rejoined:
            self._main_group.forget(record)
        self.statistics.joins_count += 1
        self._events.append(ReceiverJoined(record.receiver_id, rejoined))
        by_multicast = self.state is CastState.GATHERING and not request.has_manifest
        # In an open cast anybody can join again and again: one pass of the manifest, then repairs for those that
        # NACK, instead of megabytes for each request.
        if by_multicast and (address_count_max is None or self.statistics.joins_count == 1):
            self.manifest_demand.want(None)
        if request.has_manifest:
            self.set_need(record.receiver_id, request.need, now)
        return self._grants.grant(
            record,
            manifest_by_multicast=by_multicast,
            next_sequence=self._transmission.next_sequence,
            report_interval_s=self._report_interval_s,
        )

    def set_need(
        self,
        receiver_id: ReceiverId,
        need: NDArray[np.bool_] | None,
        now: float,
        heard_sequence: int | None = None,
    ) -> None:
        """Set the needed blocks of a receiver that holds the manifest.

        While it scans its target it calls this repeatedly, each time with the blocks found since.

        Args:
            receiver_id: the receiver.
            need: ``bool[block_count]``; None for all.
            now: monotonic seconds.
            heard_sequence: number after the last symbol that it had received: symbols sent since are on their way
                already. None if it had received none.

        Raises:
            JoinRefusedError: the bitmap doesn't fit the image.
        """
        self._grants.check_need(need)
        record = self.receivers[receiver_id]
        record.heard_at = now
        if not self._roster.advance(record, ReceiverTrigger.NEED_REPORTED):
            return  # it is no longer served
        record.ready = True
        record.unserved_s = 0.0
        if self.state is not CastState.ENDED:
            self.image_demand.want(need, heard_sequence)

    def check_key(self, receiver_id: ReceiverId, key: bytes) -> None:
        """Raise :class:`JoinRefusedError` unless ``key`` is that receiver's."""
        self._grants.check_key(receiver_id, key)

    def complete(self, receiver_id: ReceiverId, report: CompletionReport, now: float) -> None:
        """Record a receiver's completion report, of success or failure."""
        record = self.receivers[receiver_id]
        record.completion = report
        record.finished_at = now
        record.heard_at = now
        if report.success:
            record.needed_count = 0
            record.error = ""
            self._leave(record, ReceiverTrigger.SUCCEEDED)
            self._events.append(ReceiverCompleted(receiver_id))
        elif self._leave(record, ReceiverTrigger.FAILED):
            record.error = report.error
            self._events.append(ReceiverFailed(receiver_id, report.error))
        self._serve_remaining(now)

    # -- the operator -----------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Send no more data until :meth:`resume`. Announcements continue, and receivers keep their blocks."""
        self.paused = True

    def resume(self, now: float) -> None:
        """Continue where :meth:`pause` stopped."""
        self.paused = False
        self._transmission.resume(now)

    def set_rate_ceiling(self, bytes_per_s: float) -> None:
        """Limit the rate from now on, in addition to the policy's limit."""
        self.rate_control.set_maximum(min(bytes_per_s, self.policy.rate_max_bytes_per_s or math.inf))

    def end(self, outcome: SessionOutcome, reason: str, now: float) -> None:
        """End the cast; the first end counts."""
        if not self._advance(CastTrigger.FINISHED):
            return
        self.outcome = outcome
        self.reason = reason
        self.statistics.ended_at = now
        self._poisoned.withdraw()
        self._demand.withdraw()
        self._messages.send_end(outcome, reason, now)
        self._events.append(CastFinished(outcome, reason))

    # -- feedback datagrams -----------------------------------------------------------------------------------

    def receive_feedback_untrusted(self, datagram: bytes, now: float) -> None:
        """Process a datagram from the feedback port; a bad one is counted in ``rejects`` and dropped."""
        opened = self._inbox.open_untrusted(datagram, now)
        if opened is None:
            return
        record, message = opened
        if self.state is not CastState.ENDED and self._roster.advance(record, ReceiverTrigger.HEARD_AGAIN):
            if record.ready:
                self._roster.advance(record, ReceiverTrigger.NEED_REPORTED)
            self._events.append(ReceiverReturned(record.receiver_id))
        if isinstance(message, Nack):
            self._receive_nack(record, message, now)
        elif isinstance(message, Poisoned):
            self._receive_poisoned(record, message, now)
        elif message is not None:
            self._receive_report(record, message, now)

    def _receive_report(self, record: ReceiverRecord, report: Report, now: float) -> None:
        self.statistics.reports_received_count += 1
        casting = self.state is CastState.CASTING
        self._reports.take(record, report, interval_s=self._report_interval_s, casting=casting, now=now)
        if casting and record.state.active:
            self._events += self._main_group.judge(now)

    def _receive_nack(self, record: ReceiverRecord, nack: Nack, now: float) -> None:
        self.statistics.nacks_received_count += 1
        if record.state.active and self.state is not CastState.ENDED:
            self._repair_requests.take(
                record,
                nack,
                alone=self.active_count == 1,
                rate_bytes_per_s=self.rate_bytes_per_s,
                achieved_bytes_per_s=self.achieved_bytes_per_s,
                now=now,
            )

    def _receive_poisoned(self, record: ReceiverRecord, message: Poisoned, now: float) -> None:
        self.statistics.poisoned_reports_count += 1
        if record.state.active and self.state is not CastState.ENDED:
            self._poisoned.report(record.limits, message, grtt_s=self.grtt_s, now=now)

    def allow_fetch(self, receiver_id: ReceiverId, block: int, now: float) -> bool:
        """Return whether a receiver may fetch an image block over the control API now.

        Raises:
            JoinRefusedError: the image has no such block.
        """
        allowed = self._poisoned.allow_fetch(self.receivers[receiver_id].limits, block, now)
        self.statistics.blocks_served_count += allowed
        return allowed

    # -- sending ----------------------------------------------------------------------------------------------

    def next_plan(self, now: float, symbols_max: int) -> SendPlan | None:
        """Return the next symbols to send, repairs before new data; None when there is nothing to send.

        Args:
            now: monotonic seconds.
            symbols_max: size limit of the plan.
        """
        if self.state is CastState.ENDED or self.paused:
            return None
        plan = self._planner.next_plan(symbols_max, casting=self.state is CastState.CASTING, now=now)
        if plan is not None and plan.symbol_count:
            self._messages.note_planned()
        return plan

    def send_digests(self, digests: BlockDigests) -> None:
        """Multicast the digests that a plan requested."""
        self.statistics.digests_sent_count += 1
        self._messages.send_digests(digests)

    def mark_transmitted(
        self, next_sequence: int, byte_count: int, now: float, *, read_s: float = 0.0
    ) -> None:
        """Note that a batch is on the wire, which updates the measured rate and allows a FLUSH.

        Args:
            next_sequence: everything before it is on the wire.
            byte_count: size of the batch's frames.
            now: monotonic seconds.
            read_s: seconds of reading the image for the batch.
        """
        symbol_count = self._transmission.mark(next_sequence, byte_count, now, read_s)
        self.statistics.symbols_transmitted_count += symbol_count
        self.statistics.bytes_transmitted += byte_count
        self.rate_control.tick(self._transmission.achieved_bytes_per_s, now, self._report_interval_s)
        self._messages.note_transmitted(now)

    def note_read(self, waiting_s: float) -> None:
        """Note the duration of the current read of the image, from time to time; 0 if there is none.

        Nothing is transmitted during a read, so this is the only sign of a stalled source.
        """
        self._transmission.note_read(waiting_s)

    def control_datagrams(self, now: float) -> list[bytes]:
        """Return the control datagrams that are due, in sending order; also run the timeouts."""
        if now >= self._timeouts_at:
            self._run_timers(now, now - self._timeouts_at + _TIMER_S)
            self._timeouts_at = now + _TIMER_S
        self._start_if_gathered(now)
        group = GroupState(
            state=self.state,
            receiver_count=self.active_count,
            rate_bytes_per_s=self.rate_bytes_per_s,
            grtt_s=self.grtt_s,
            report_interval_s=self._report_interval_s,
            next_sequence=self._transmission.next_sequence,
        )
        return self._messages.due(now, group, self._swept() if self._flush_due() else None)

    def next_timer(self, now: float) -> float:
        """Return the time of the next call of :meth:`control_datagrams`, absolute monotonic seconds."""
        return max(now, min(self._timeouts_at, self._messages.next_at(flush_due=self._flush_due())))

    # -- inside -----------------------------------------------------------------------------------------------

    def _advance(self, trigger: CastTrigger) -> bool:
        """Take a step of the transition table; return False, and stay, if the state has none for ``trigger``."""
        state = CAST_TRANSITIONS[self.state].get(trigger)
        if state is None:
            return False
        self.state = state
        return True

    def _flush_due(self) -> bool:
        """Return whether all demand is on the wire and receivers may still miss some of it."""
        if self.state is CastState.ENDED or self.paused:
            return False
        if self._transmission.next_sequence != self._planner.next_sequence:
            return False
        if self.state is CastState.GATHERING:
            return self.manifest_demand.idle and any(not record.ready for record in self._roster.active)
        return self.active_count > 0 and self._demand.idle

    def _swept(self) -> Sweep:
        casting = self.state is CastState.CASTING
        demand = self.image_demand if casting else self.manifest_demand
        return Sweep(demand.object_index, demand.pass_index)

    @property
    def _report_interval_s(self) -> float:
        return report_interval_s(self.active_count, self.rate_bytes_per_s)

    # -- receivers --------------------------------------------------------------------------------------------

    def _leave(self, record: ReceiverRecord, trigger: ReceiverTrigger) -> bool:
        left = self._roster.advance(record, trigger)
        if left:
            self._main_group.forget(record)
            self._grtt.forget(record.receiver_id)
        return left

    def _run_timers(self, now: float, elapsed_s: float) -> None:
        """Run the checks of every ``_TIMER_S``."""
        for record in self._liveness.take_silent(self._report_interval_s, now):
            self._leave(record, ReceiverTrigger.TIMED_OUT)
            self._events.append(ReceiverLost(record.receiver_id))
        if self.state is CastState.CASTING:
            self._bottleneck.note(self.bottleneck, elapsed_s)
            serving_s = 0.0 if self.paused or self._transmission.read_stalled else elapsed_s
            for record in self._liveness.take_stalled(serving_s, now):
                self._leave(record, ReceiverTrigger.FAILED)
                self._events.append(ReceiverFailed(record.receiver_id, record.error))
            self._events += self._main_group.judge(now, at_once=True)
            self._serve_remaining(now)
        capacities = self.rate_control.capacities.values()
        self._parity.update((item.usual_loss, item.loss_burst) for item in capacities if not item.exempt)
        self._messages.send_standing(self._main_group.standing(now), now)

    def _serve_remaining(self, now: float) -> None:
        """Start the tail when only stragglers are left; end the cast when no receiver is."""
        if self.state is not CastState.CASTING:
            return
        if self.active_count and self._main_group.over:
            self._events += self._main_group.start_tail(now)
        if self.gathering.over(now):
            self.end(SessionOutcome.COMPLETE, "every receiver has ended", now)

    def _start_if_gathered(self, now: float) -> None:
        if self.state is not CastState.GATHERING:
            return
        attendance = self.gathering.check(now)
        if attendance is Attendance.NOBODY:
            self._events.append(GatheringTimedOut())
            self.end(SessionOutcome.CANCELLED, "no receiver joined in time", now)
        elif attendance is Attendance.GATHERED:
            self._advance(CastTrigger.GATHERED)
            self.statistics.started_at = now
            self._messages.announce_now(now)
            self._events.append(CastingStarted())
