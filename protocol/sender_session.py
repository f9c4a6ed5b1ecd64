"""The sender's side of a cast, sans-IO: who takes part, what to send next, when to speak to the group.

::

    GATHERING ── enough receivers joined and hold the manifest ──► CASTING ── nobody is active any more ──► ENDED
        │                                                             │                                       ▲
        └───────────── nobody joined in time, cancelled, failed ──────┴───────────────────────────────────────┘

The shell calls in from one thread at a time. It asks for plans as long as there are any, says what it has put on the
wire, multicasts the control datagrams that are due, and hands in feedback and the control API's requests.
"""

from __future__ import annotations

import dataclasses
import hmac
import math
import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from protocol.constants import (
    ANNOUNCE_INTERVAL_S,
    EOT_COUNT,
    EOT_INTERVAL_S,
    FLUSH_INTERVAL_MAX_S,
    FLUSH_INTERVAL_MIN_S,
    MANIFEST_WAIT_S,
    RECEIVER_COUNT_MAX,
    RECEIVER_KEY_BYTES,
    RECEIVER_TIMEOUT_S,
)
from protocol.demand import Demand, SegmentList
from protocol.errors import JoinRefusedError, WireError
from protocol.events import (
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
from protocol.feedback_timing import report_interval_s
from protocol.grtt import GrttEstimator
from protocol.manifest import Manifest
from protocol.manifest_reception import manifest_source_symbols
from protocol.rate_control import RateController
from protocol.receiver_record import ReceiverRecord
from protocol.send_plan import SendPlan
from protocol.sequence import sequence_difference
from protocol.session_records import (
    CastParameters,
    CompletionReport,
    JoinGrant,
    JoinRequest,
    ReceiverId,
    ReceiverState,
)
from protocol.wire.codec import check_feedback_mac, decode_feedback_untrusted, encode_control
from protocol.wire.messages import (
    END_CANCELLED,
    END_COMPLETE,
    OBJECT_IMAGE,
    OBJECT_MANIFEST,
    STATE_CASTING,
    STATE_ENDED,
    STATE_GATHERING,
    Announce,
    EndOfTransmission,
    Flush,
    Nack,
    Report,
)

_ACHIEVED_SMOOTHING_S = 0.05
_FLUSH_GROWTH = 1.5
_TIMER_S = 0.1
"""Timeouts of receivers are looked at this often."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastPolicy:
    """How the operator wants the cast run.

    Attributes:
        wait_for: receivers that must have joined before image data is sent.
        max_wait_s: start with those that are there after this time; None waits for ever.
        receiver_timeout_s: a receiver silent for this long is lost.
        rate_bytes_per_s: a fixed rate; None for automatic.
        rate_max_bytes_per_s: ceiling of the automatic rate; None for the program's own.
    """

    wait_for: int = 1
    max_wait_s: float | None = None
    receiver_timeout_s: float = RECEIVER_TIMEOUT_S
    rate_bytes_per_s: float | None = None
    rate_max_bytes_per_s: float | None = None


@dataclasses.dataclass(slots=True)
class SenderStatistics:
    """Plain counters of the whole cast, for metrics and the summary."""

    symbols_transmitted_count: int = 0
    bytes_transmitted: int = 0
    nacks_received_count: int = 0
    nacked_block_count: int = 0
    nacked_symbol_count: int = 0
    reports_received_count: int = 0
    flushes_sent_count: int = 0
    joins_count: int = 0
    started_at: float | None = None
    """When image data began."""
    ended_at: float | None = None


class SenderSession:
    """See the module's docstring. Not thread-safe: the shell holds one lock around every call."""

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
        """Begin to gather.

        Args:
            parameters: what every receiver is told.
            manifest: the image's.
            policy: the operator's wishes.
            rng: for timing only.
            secrets: ``n`` to ``n`` unpredictable bytes, for the receivers' keys.
            now: monotonic seconds.
        """
        self.parameters = parameters
        self.policy = policy
        self.state = STATE_GATHERING
        self.outcome = END_COMPLETE
        self.reason = ""
        self.receivers: dict[ReceiverId, ReceiverRecord] = {}
        self.rejects: dict[str, int] = {}
        self.statistics = SenderStatistics()
        self.manifest_demand = Demand(OBJECT_MANIFEST, manifest_source_symbols(parameters))
        self.image_demand = Demand(OBJECT_IMAGE, manifest.source_symbols(parameters.symbol_bytes))
        self.rate_control = RateController(
            fixed_bytes_per_s=policy.rate_bytes_per_s,
            maximum_bytes_per_s=policy.rate_max_bytes_per_s,
            now=now,
        )
        self.achieved_bytes_per_s = 0.0
        self._rng = rng
        self._secrets = secrets
        self._grtt = GrttEstimator()
        self._created_at = now
        self._gathered_at: float | None = None
        self._events: list[SenderEvent] = []
        self._sequence = rng.getrandbits(32)
        self._transmitted_sequence = self._sequence
        self._transmitted_at = now
        self._announce_at = now
        self._timeouts_at = now + _TIMER_S
        self._flush_at = now
        self._flush_interval_s = FLUSH_INTERVAL_MIN_S
        self._eot_at = math.inf
        self._eot_left = 0

    # -- what the shell reads ---------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the cast has ended and every end of transmission was handed out."""
        return self.state == STATE_ENDED and self._eot_left == 0

    @property
    def rate_bytes_per_s(self) -> float:
        """The rate to pace to now."""
        return self.rate_control.rate_bytes_per_s

    @property
    def grtt_s(self) -> float:
        """The group's round-trip time."""
        return self._grtt.grtt_s

    @property
    def active_count(self) -> int:
        """Receivers that the cast still works for."""
        return sum(record.state.active for record in self.receivers.values())

    @property
    def parity(self) -> float:
        """Proactive repair symbols per source symbol: what the group's usual loss p takes, p / (1 - p)."""
        loss = self._group_loss()
        return loss / (1.0 - loss) if loss > 0.002 else 0.0

    def next_events(self) -> list[SenderEvent]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    # -- the control API --------------------------------------------------------------------------------------

    def join(self, request: JoinRequest, now: float) -> JoinGrant:
        """Let a receiver in, or give it its old place back.

        The old place is that of the same run of the agent or, for a machine that was started again, of a receiver of
        the same name and address that was lost or failed.

        Raises:
            JoinRefusedError: the cast has ended or is full, or the need-bitmap doesn't fit the image.
        """
        if self.state == STATE_ENDED:
            raise JoinRefusedError("the cast has ended: wait for the next one or start it again")
        self._check_need(request.need)
        record = self._earlier_record(request)
        rejoined = record is not None
        if record is None:
            if len(self.receivers) >= RECEIVER_COUNT_MAX:
                raise JoinRefusedError(
                    f"the cast is full: {RECEIVER_COUNT_MAX} receivers; image this machine in another cast"
                )
            record = ReceiverRecord(
                receiver_id=ReceiverId(len(self.receivers)),
                agent_id=request.agent_id,
                requested_name=request.name,
                name=self._unique_name(request.name),
                address=request.address,
                inventory=request.inventory,
                key=self._secrets(RECEIVER_KEY_BYTES),
                joined_at=now,
                heard_at=now,
            )
            self.receivers[record.receiver_id] = record
        else:
            record.agent_id = request.agent_id
            record.key = self._secrets(RECEIVER_KEY_BYTES)
            record.forget_counts()
            self.rate_control.forget(record.receiver_id)
        record.state = ReceiverState.JOINED
        record.heard_at = now
        record.ready = False
        record.finished_at = None
        record.error = ""
        self.statistics.joins_count += 1
        self._events.append(ReceiverJoined(record.receiver_id, rejoined))
        by_multicast = self.state == STATE_GATHERING and not request.has_manifest
        if by_multicast:
            self.manifest_demand.want(None)
        if request.has_manifest:
            self.set_need(record.receiver_id, request.need, now)
        return JoinGrant(
            parameters=self.parameters,
            receiver_id=record.receiver_id,
            key=record.key,
            manifest_by_multicast=by_multicast,
            report_interval_s=report_interval_s(self.active_count),
            grtt_s=self.grtt_s,
            receiver_count=self.active_count,
        )

    def set_need(self, receiver_id: ReceiverId, need: NDArray[np.bool_] | None, now: float) -> None:
        """A receiver holds the manifest and says what it lacks: ``bool[block_count]``, None for all.

        Raises:
            JoinRefusedError: the bitmap doesn't fit the image.
        """
        self._check_need(need)
        record = self.receivers[receiver_id]
        record.ready = True
        record.state = ReceiverState.RECEIVING
        record.heard_at = now
        if self.state != STATE_ENDED:
            self.image_demand.want(need)

    def check_key(self, receiver_id: ReceiverId, key: bytes) -> None:
        """Raise :class:`JoinRefusedError` unless ``key`` is that receiver's."""
        record = self.receivers.get(receiver_id)
        if record is None or not hmac.compare_digest(record.key, key):
            raise JoinRefusedError("unknown receiver or wrong key: join the cast again")

    def complete(self, receiver_id: ReceiverId, report: CompletionReport, now: float) -> None:
        """Take a receiver's account of its end, good or bad."""
        record = self.receivers[receiver_id]
        record.completion = report
        record.finished_at = now
        record.heard_at = now
        self.rate_control.forget(receiver_id)
        if report.success:
            record.state = ReceiverState.COMPLETE
            record.needed_count = 0
            self._events.append(ReceiverCompleted(receiver_id))
        else:
            record.state = ReceiverState.FAILED
            record.error = report.error
            self._events.append(ReceiverFailed(receiver_id, report.error))
        self._end_if_nobody_is_active(now)

    def end(self, outcome: int, reason: str, now: float) -> None:
        """End the cast, with END_COMPLETE, END_CANCELLED or END_FAILED; the first end counts."""
        if self.state == STATE_ENDED:
            return
        self.state = STATE_ENDED
        self.outcome = outcome
        self.reason = reason
        self.statistics.ended_at = now
        self.manifest_demand.withdraw()
        self.image_demand.withdraw()
        self._eot_left = EOT_COUNT
        self._eot_at = now
        self._events.append(CastFinished(outcome, reason))

    # -- feedback datagrams -----------------------------------------------------------------------------------

    def receive_feedback_untrusted(self, datagram: bytes, now: float) -> None:
        """Take a datagram from the feedback port; a bad one is counted in ``rejects`` and dropped."""
        try:
            self._receive_feedback_untrusted(datagram, now)
        except WireError as error:
            self.rejects[error.reason] = self.rejects.get(error.reason, 0) + 1

    def _receive_feedback_untrusted(self, datagram: bytes, now: float) -> None:
        prefix, message = decode_feedback_untrusted(datagram)
        if prefix.cast_id != self.parameters.cast_id:
            raise WireError("foreign_cast")
        if prefix.session_token != self.parameters.session_token:
            raise WireError("stale_session")
        record = self.receivers.get(ReceiverId(message.receiver_id))
        if record is None:
            raise WireError("unknown_receiver")
        check_feedback_mac(datagram, record.key)
        if message.counter <= record.counter:
            raise WireError("replayed")
        record.counter = message.counter
        record.heard_at = now
        if record.state is ReceiverState.LOST and self.state != STATE_ENDED:
            record.state = ReceiverState.RECEIVING if record.ready else ReceiverState.JOINED
            self._events.append(ReceiverReturned(record.receiver_id))
        if isinstance(message, Report):
            self._receive_report(record, message, now)
        else:
            self._receive_nack(record, message)

    def _receive_report(self, record: ReceiverRecord, report: Report, now: float) -> None:
        self.statistics.reports_received_count += 1
        sample = record.apply_report(report, now)
        if report.echo_us:
            record.rtt_s = now - (report.echo_us + report.echo_delay_us) / 1e6
            self._grtt.add(record.rtt_s, now, report_interval_s(self.active_count))
        if record.state.active:
            self.rate_control.add_sample(record.receiver_id, sample, self.grtt_s, now)

    def _receive_nack(self, record: ReceiverRecord, nack: Nack) -> None:
        self.statistics.nacks_received_count += 1
        if not record.state.active:
            return
        demand = self.image_demand if nack.object == OBJECT_IMAGE else self.manifest_demand
        if nack.object == OBJECT_IMAGE and not record.ready:
            return
        for block, count, deficit in nack.deficits:
            accepted = demand.nack(block, count, deficit, nack.sequence)
            self.statistics.nacked_block_count += accepted
            self.statistics.nacked_symbol_count += accepted * deficit
            record.nacked_symbol_count += accepted * deficit

    # -- sending ----------------------------------------------------------------------------------------------

    def next_plan(self, now: float, symbols_max: int) -> SendPlan | None:
        """The next symbols to send, repairs before new data; None when there is nothing to send now.

        Args:
            now: monotonic seconds.
            symbols_max: size limit of the plan.
        """
        if self.state == STATE_ENDED:
            return None
        segments = SegmentList(symbols_max)
        loss = self._group_loss()
        sequence = self.manifest_demand.plan_repairs(segments, self._sequence, loss)
        sequence = self.manifest_demand.plan_pass(segments, sequence, self.parity)
        if self.state == STATE_CASTING:
            sequence = self.image_demand.plan_repairs(segments, sequence, loss)
            sequence = self.image_demand.plan_pass(segments, sequence, self.parity)
        if segments.room == symbols_max:
            return None
        plan = SendPlan(segments.array(), self._sequence, symbols_max - segments.room)
        self._sequence = sequence
        self._flush_interval_s = FLUSH_INTERVAL_MIN_S
        assert plan.next_sequence == sequence
        return plan

    def mark_transmitted(self, next_sequence: int, byte_count: int, now: float) -> None:
        """Everything before ``next_sequence`` is on the wire: FLUSH may follow, and the real rate is known."""
        symbol_count = sequence_difference(next_sequence, self._transmitted_sequence)
        elapsed_s = max(1e-6, now - self._transmitted_at)
        weight = 1.0 - math.exp(-elapsed_s / _ACHIEVED_SMOOTHING_S)
        self.achieved_bytes_per_s += weight * (byte_count / elapsed_s - self.achieved_bytes_per_s)
        self._transmitted_at = now
        self._transmitted_sequence = next_sequence
        self.statistics.symbols_transmitted_count += symbol_count
        self.statistics.bytes_transmitted += byte_count
        self.rate_control.tick(self.achieved_bytes_per_s, now)
        self._flush_at = now

    def control_datagrams(self, now: float) -> list[bytes]:
        """The control datagrams that are due, to be multicast in this order; also runs the timeouts."""
        if now >= self._timeouts_at:
            self._timeouts_at = now + _TIMER_S
            self._check_timeouts(now)
        self._start_if_gathered(now)
        datagrams = []
        if now >= self._announce_at:
            self._announce_at = now + ANNOUNCE_INTERVAL_S
            datagrams.append(self._encode(self._announce(now), token=0))
        if self._flush_due() and now >= self._flush_at:
            self._flush_at = now + max(self._flush_interval_s, 2 * self.grtt_s)
            self._flush_interval_s = min(self._flush_interval_s * _FLUSH_GROWTH, FLUSH_INTERVAL_MAX_S)
            self.statistics.flushes_sent_count += 1
            datagrams.append(self._encode(self._flush(now)))
        if self._eot_left and now >= self._eot_at:
            self._eot_at = now + EOT_INTERVAL_S
            self._eot_left -= 1
            reason = self.reason.encode()[:500].decode(errors="ignore")
            datagrams.append(self._encode(EndOfTransmission(self.outcome, reason)))
        return datagrams

    def next_timer(self, now: float) -> float:
        """When :meth:`control_datagrams` should be asked again, absolute monotonic seconds."""
        times = [self._announce_at, self._timeouts_at]
        if self._flush_due():
            times.append(self._flush_at)
        if self._eot_left:
            times.append(self._eot_at)
        return max(now, min(times))

    # -- inside -----------------------------------------------------------------------------------------------

    def _flush_due(self) -> bool:
        """All that was asked for is on the wire, and somebody may still lack some of it."""
        if self.state == STATE_ENDED or self._transmitted_sequence != self._sequence:
            return False
        if self.state == STATE_GATHERING:
            waiting = any(r.state.active and not r.ready for r in self.receivers.values())
            return waiting and self.manifest_demand.idle
        return self.active_count > 0 and self.image_demand.idle and self.manifest_demand.idle

    def _flush(self, now: float) -> Flush:
        object_index = OBJECT_IMAGE if self.state == STATE_CASTING else OBJECT_MANIFEST
        demand = self.image_demand if object_index == OBJECT_IMAGE else self.manifest_demand
        return Flush(
            object=object_index,
            pass_index=demand.pass_index & 0xFFFF,
            sequence=self._sequence,
            receiver_count=self.active_count,
            grtt_us=int(self.grtt_s * 1e6),
            sent_at_us=int(now * 1e6),
        )

    def _announce(self, now: float) -> Announce:
        parameters = self.parameters
        return Announce(
            incarnation=parameters.incarnation,
            state=self.state,
            image_id=parameters.image_id,
            image_name=parameters.image_name,
            control_url=parameters.control_url,
            symbol_bytes=parameters.symbol_bytes,
            raw_bytes=parameters.raw_bytes,
            receiver_count=self.active_count,
            rate_bytes_per_s=int(self.rate_bytes_per_s),
            grtt_us=int(self.grtt_s * 1e6),
            sent_at_us=int(now * 1e6),
        )

    def _encode(self, message: Announce | Flush | EndOfTransmission, token: int | None = None) -> bytes:
        session_token = self.parameters.session_token if token is None else token
        return encode_control(message, cast_id=self.parameters.cast_id, session_token=session_token)

    def _group_loss(self) -> float:
        """The largest usual loss of the active receivers, 0..0.5: what parity and repairs allow for."""
        losses = (
            self.rate_control.usual_loss(record.receiver_id)
            for record in self.receivers.values()
            if record.state.active
        )
        return min(0.5, max(losses, default=0.0))

    def _check_timeouts(self, now: float) -> None:
        for record in self.receivers.values():
            if record.state.active and now - record.heard_at > self.policy.receiver_timeout_s:
                record.state = ReceiverState.LOST
                record.finished_at = now
                record.error = f"silent for {self.policy.receiver_timeout_s:.0f} s"
                self.rate_control.forget(record.receiver_id)
                self._events.append(ReceiverLost(record.receiver_id))
        if self.state == STATE_CASTING:
            self._end_if_nobody_is_active(now)

    def _end_if_nobody_is_active(self, now: float) -> None:
        if self.state == STATE_CASTING and self.active_count == 0:
            self.end(END_COMPLETE, "every receiver has ended", now)

    def _start_if_gathered(self, now: float) -> None:
        if self.state != STATE_GATHERING:
            return
        waited_s = now - self._created_at
        overdue = self.policy.max_wait_s is not None and waited_s >= self.policy.max_wait_s
        present_count = sum(
            record.state.active or record.state is ReceiverState.COMPLETE
            for record in self.receivers.values()
        )
        if overdue and present_count == 0:
            self._events.append(GatheringTimedOut())
            self.end(END_CANCELLED, "no receiver joined in time", now)
            return
        if present_count == 0 or not (present_count >= self.policy.wait_for or overdue):
            self._gathered_at = None
            return
        if self._gathered_at is None:
            self._gathered_at = now
        ready = all(record.ready for record in self.receivers.values() if record.state.active)
        if ready or now - self._gathered_at >= MANIFEST_WAIT_S:
            self.state = STATE_CASTING
            self.statistics.started_at = now
            self._announce_at = now
            self._events.append(CastingStarted())

    def _check_need(self, need: NDArray[np.bool_] | None) -> None:
        if need is not None and need.shape != (self.image_demand.block_count,):
            raise JoinRefusedError(
                f"the need-bitmap has {need.size} blocks, the image {self.image_demand.block_count}: "
                "fetch the manifest again"
            )

    def _earlier_record(self, request: JoinRequest) -> ReceiverRecord | None:
        for record in self.receivers.values():
            if record.agent_id == request.agent_id:
                return record
            same_machine = (record.requested_name, record.address) == (request.name, request.address)
            if same_machine and record.state in (ReceiverState.LOST, ReceiverState.FAILED):
                return record
        return None

    def _unique_name(self, name: str) -> str:
        names = {record.name for record in self.receivers.values()}
        if name not in names:
            return name
        return next(f"{name}-{n}" for n in range(2, RECEIVER_COUNT_MAX + 2) if f"{name}-{n}" not in names)
