"""The sender's record of one receiver, and its updates by reports."""

from __future__ import annotations

import dataclasses
import math

from protocol.constants import FEEDBACK_BURST, FEEDBACK_PER_S_MAX, REPAIR_SHARE_MAX
from protocol.model.bottleneck import Cause
from protocol.model.session_records import CompletionReport, MachineIdentity, ReceiverId, ReceiverState
from protocol.sending.member_limits import MemberLimits
from protocol.sending.rate.rate_sample import RateSample
from protocol.sending.rate.work_rates import WorkRates
from protocol.sending.replay_window import ReplayWindow
from protocol.shared.token_bucket import TokenBucket
from protocol.wire.messages import BOTTLENECKS, Report

_LOSS_SMOOTHING = 0.3
_REPAIR_BURST_S = 1.0
"""Time whose share of repairs a receiver may save up: losses come in bursts, such as the end of a pass."""
_BACKLOG_SHARE = 0.35
"""Share of the buffers with blocks that the machine itself works on; below it, the buffers are full of incomplete
blocks that wait for the sender, and drops aren't the machine's own."""


@dataclasses.dataclass(slots=True)
class ReceiverRecord:
    """One receiver of the cast.

    Attributes:
        machine_id: machine that its ticket proves; None without tickets.
        name: the requested name, made unique within the cast.
        identity: identity of its machine, if its agent reports it.
        ready: it holds the manifest and has reported the blocks that it needs.
        needed_count: blocks that it hasn't verified yet, by its report; None before the first.
        loss: smoothed share of datagrams that don't reach it, 0..1.
        queue_delay_s: smallest recent time of datagrams in queues on the way.
        sustainable_bytes_per_s: the rate that it is known to sustain, in bytes of frames; infinite while unknown.
        slow_since: time when it became much slower than the group; None if it isn't.
        slow_cause: cause of its slowness; kept for a straggler as long as the cast serves it.
        demoted: it was too slow for too long.
        deferred: its repairs wait for the tail, which hasn't started.
        work: rates at which it reads its socket and writes.
        nacked_symbol_count: symbols that it requested.
        feedback_allowance: datagrams that it may send.
        repair_allowance_s: seconds of the cast's rate that its repairs may take.
        unserved_s: time since its last progress in which the cast served its receivers.
    """

    receiver_id: ReceiverId
    agent_id: str
    name: str
    address: str
    inventory: dict[str, str]
    identity: MachineIdentity | None
    key: bytes
    joined_at: float
    heard_at: float
    state: ReceiverState = ReceiverState.JOINED
    ready: bool = False
    replay_window: ReplayWindow = dataclasses.field(default_factory=ReplayWindow)
    report_counter: int = 0
    feedback_allowance: TokenBucket = dataclasses.field(
        default_factory=lambda: TokenBucket(per_s=FEEDBACK_PER_S_MAX, burst=FEEDBACK_BURST)
    )
    repair_allowance_s: TokenBucket = dataclasses.field(
        default_factory=lambda: TokenBucket(per_s=REPAIR_SHARE_MAX, burst=REPAIR_SHARE_MAX * _REPAIR_BURST_S)
    )
    needed_at_join_count: int = 0
    needed_count: int | None = None
    verified_count: int = 0
    expected_count: int = 0
    received_count: int = 0
    loss_event_count: int = 0
    socket_drop_count: int = 0
    pool_drop_count: int = 0
    bytes_written: int = 0
    nacks_sent_count: int = 0
    nacked_symbol_count: int = 0
    parity_repaired_count: int = 0
    loss: float = 0.0
    queue_delay_s: float = 0.0
    sustainable_bytes_per_s: float = math.inf
    slow_since: float | None = None
    slow_cause: Cause | None = None
    demoted: bool = False
    deferred: bool = False
    fill: float = 0.0
    unserved_s: float = 0.0
    rtt_s: float = 0.0
    work: WorkRates = dataclasses.field(default_factory=WorkRates)
    bottleneck: Cause = Cause.NETWORK
    reported_at: float = 0.0
    finished_at: float | None = None
    limits: MemberLimits = dataclasses.field(default_factory=MemberLimits)
    error: str = ""
    completion: CompletionReport | None = None
    machine_id: str | None = None

    @property
    def progress(self) -> float:
        """Return the verified share of the blocks that it needed at join, 0..1."""
        if self.state is ReceiverState.COMPLETE:
            return 1.0
        # A report from before the manifest has 0 needed blocks, and may arrive after the receiver became ready.
        if self.needed_count is None or not self.needed_at_join_count:
            return 0.0
        return 1.0 - min(1.0, self.needed_count / self.needed_at_join_count)

    @property
    def repairable(self) -> bool:
        """Return whether its NACKs of image blocks are answered now."""
        return self.ready and self.slow_since is None and not self.deferred

    @property
    def rate_bytes_per_s(self) -> float:
        """Return the smoothed rate at which it writes."""
        return self.work.written_bytes_per_s

    @property
    def loss_burst(self) -> float:
        """Return the average number of datagrams lost in a row; 0 while none was lost."""
        if not self.loss_event_count:
            return 0.0
        return max(1.0, (self.expected_count - self.received_count) / self.loss_event_count)

    def apply_report(
        self, report: Report, frame_bytes: int, frame_bytes_per_raw: float, now: float, *, casting: bool
    ) -> RateSample:
        """Update the record by a report; return its sample for rate control.

        Args:
            report: the latest report.
            frame_bytes: length of a frame.
            frame_bytes_per_raw: bytes of frames that the cast sends for each byte that a receiver writes.
            now: monotonic seconds.
            casting: image data is being sent.
        """
        fill = report.fill_permille / 1000
        expected_count = report.expected_count - self.expected_count
        lost_count = max(0, expected_count - (report.received_count - self.received_count))
        # In large groups the last report is seconds old: losses right after it don't describe the present.
        recent_lost_count = report.recent_expected_count - report.recent_received_count
        event_count = max(0, report.loss_event_count - self.loss_event_count)
        if expected_count > 0:
            self.loss += _LOSS_SMOOTHING * (min(1.0, lost_count / expected_count) - self.loss)
        elapsed_s = now - self.reported_at
        if casting and self.reported_at and elapsed_s > 0:
            self.work.add(
                written_bytes=max(0, report.bytes_written - self.bytes_written),
                taken_frames=max(0, report.received_count - self.received_count),
                elapsed_s=elapsed_s,
            )
        sample = RateSample(
            expected_count=report.recent_expected_count,
            received_count=report.recent_received_count,
            local_drop_count=max(0, report.socket_drop_count - self.socket_drop_count)
            + (max(0, report.pool_drop_count - self.pool_drop_count) if fill > _BACKLOG_SHARE else 0),
            fill=fill,
            loss_burst=lost_count / event_count
            if event_count and recent_lost_count >= lost_count / 2
            else 0.0,
            arriving_bytes_per_s=report.arriving_bytes_per_s,
            queue_delay_s=report.queue_delay_us / 1e6,
            taken_bytes_per_s=self.work.taken_frames_per_s * frame_bytes,
            written_bytes_per_s=self.work.written_bytes_per_s * frame_bytes_per_raw,
            cause=BOTTLENECKS[report.bottleneck],
        )
        if (report.received_count, report.bytes_written) != (self.received_count, self.bytes_written):
            self.unserved_s = 0.0
        self.queue_delay_s = sample.queue_delay_s
        self.reported_at = now
        self.expected_count = report.expected_count
        self.received_count = report.received_count
        self.loss_event_count = report.loss_event_count
        self.socket_drop_count = report.socket_drop_count
        self.pool_drop_count = report.pool_drop_count
        self.bytes_written = report.bytes_written
        self.nacks_sent_count = report.nacks_sent_count
        self.parity_repaired_count = report.parity_repaired_count
        self.fill = sample.fill
        self.bottleneck = sample.cause
        if self.ready:
            if report.blocks_verified_count != self.verified_count:
                self.unserved_s = 0.0
            self.needed_count = report.blocks_needed_count
            self.verified_count = report.blocks_verified_count
            self.needed_at_join_count = max(self.needed_at_join_count, self.needed_count)
        return sample

    def forget_counts(self) -> None:
        """Reset the counters: a new run of the agent counts from zero."""
        self.replay_window = ReplayWindow()
        self.report_counter = 0
        self.expected_count = self.received_count = self.loss_event_count = 0
        self.socket_drop_count = self.pool_drop_count = 0
        self.bytes_written = self.nacks_sent_count = self.parity_repaired_count = 0
        self.reported_at = 0.0
