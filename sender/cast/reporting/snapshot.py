"""Snapshots of a running cast, copied from the session, and the summary of an ended one."""

from __future__ import annotations

import dataclasses
import math

from protocol.errors import NotEnoughReceiversError, ReceiversIncompleteError
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import MachineIdentity, ReceiverState
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.sender_session import SenderSession
from sender.cast.reporting.bottleneck_view import BottleneckTime, BottleneckView

_NAMED_MAX = 20
"""Most receivers named in an error message; the summary names all of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverView:
    """A snapshot of one receiver.

    Attributes:
        bottleneck: its own bottleneck, as it reports it.
        demoted: True for a straggler, which is finished after the other receivers.
        slow: True while it is so far behind the group that it is about to be demoted or dropped.
        sustainable_bytes_per_s: rate that it could take; None while unknown.
        queue_delay_s: time that datagrams to it spend in queues on the way.
    """

    name: str
    state: str
    progress: float
    rate_bytes_per_s: float
    loss: float
    nacks_count: int
    bottleneck: str
    demoted: bool
    slow: bool
    sustainable_bytes_per_s: float | None
    queue_delay_s: float
    error: str

    @classmethod
    def of(cls, record: ReceiverRecord) -> ReceiverView:
        """Return a snapshot of ``record``."""
        sustainable = record.sustainable_bytes_per_s
        return cls(
            name=record.name,
            state=record.state.value,
            progress=round(record.progress, 4),
            rate_bytes_per_s=round(record.rate_bytes_per_s),
            loss=round(record.loss, 5),
            nacks_count=record.nacks_sent_count,
            bottleneck=record.bottleneck,
            demoted=record.demoted,
            slow=record.slow_since is not None,
            sustainable_bytes_per_s=round(sustainable) if math.isfinite(sustainable) else None,
            queue_delay_s=round(record.queue_delay_s, 4),
            error=record.error,
        )

    @property
    def active(self) -> bool:
        """True until the receiver has completed, failed or been lost."""
        return ReceiverState(self.state).active

    @property
    def standing(self) -> str:
        """State of the receiver; ``tail`` or ``slow`` for an active straggler."""
        if self.active and self.demoted:
            return "tail"
        return "slow" if self.active and self.slow else self.state


@dataclasses.dataclass(frozen=True, slots=True)
class CastView:
    """A snapshot of the cast.

    Attributes:
        state: ``gathering``, ``casting`` or ``ended``.
        elapsed_s: time since the first image data; 0 before.
        rate_bytes_per_s: the paced rate.
        achieved_bytes_per_s: the recent rate on the wire.
        bytes_sent: bytes of data datagrams since the start.
        pass_index: current pass over the image, 0 for the first.
        pass_progress: progress of the pass, 0..1.
        eta_s: estimated time until the slowest active receiver is complete; None while unknown. Stragglers count only
            if no other receiver is left.
        bottleneck: the current bottleneck.
        bottleneck_seconds: all bottlenecks so far, with their times.
        main_group_seconds: time from the first image data to the end of all receivers but the stragglers; None before.
    """

    state: str
    elapsed_s: float
    rate_bytes_per_s: float
    achieved_bytes_per_s: float
    bytes_sent: int
    pass_index: int
    pass_progress: float
    eta_s: float | None
    bottleneck: BottleneckView
    bottleneck_seconds: tuple[BottleneckTime, ...]
    main_group_seconds: float | None
    receivers: tuple[ReceiverView, ...]

    @classmethod
    def of(cls, session: SenderSession, now: float) -> CastView:
        """Return a snapshot of ``session`` at ``now``."""
        started_at = session.statistics.started_at
        elapsed_s = 0.0 if started_at is None else (session.statistics.ended_at or now) - started_at
        receivers = tuple(ReceiverView.of(record) for record in session.receivers.values())
        active = [view for view in receivers if view.active]
        waited_for = [view for view in active if not view.demoted] or active
        least = min((view.progress for view in waited_for), default=0.0)
        return cls(
            state=session.state.label,
            elapsed_s=round(elapsed_s, 3),
            rate_bytes_per_s=round(session.rate_bytes_per_s),
            achieved_bytes_per_s=round(session.achieved_bytes_per_s),
            bytes_sent=session.statistics.bytes_transmitted,
            pass_index=session.image_demand.pass_index,
            pass_progress=round(session.image_demand.progress, 4),
            eta_s=round(elapsed_s / least - elapsed_s, 1)
            if least and session.state is CastState.CASTING
            else None,
            bottleneck=BottleneckView.of(session, session.bottleneck),
            bottleneck_seconds=BottleneckTime.all_of(session),
            main_group_seconds=_main_group_seconds(session),
            receivers=receivers,
        )

    @property
    def gathering(self) -> bool:
        """True while the room gathers."""
        return self.state == CastState.GATHERING.label

    @property
    def casting(self) -> bool:
        """True while image data flows."""
        return self.state == CastState.CASTING.label


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverSummary:
    """The result of one receiver.

    Attributes:
        bytes_verified: raw bytes of the image, read back and correct.
        bytes_kept: part of ``bytes_verified`` that was on its target before.
        blocks_rewritten: blocks that read back wrong and were sent again.
        seconds: time from its join to its end.
        rate_bytes_per_s: ``bytes_verified`` over ``seconds``.
        loss: share of the datagrams that didn't arrive, 0..1.
        blocks_repaired_by_parity: blocks completed with proactive repair symbols.
        blocks_repaired_by_nack: blocks completed after a NACK.
        nacks_count: NACK datagrams that it sent.
        socket_drops_count: datagrams dropped at its socket.
        demoted: True for a straggler.
        error: the failure; empty for a complete receiver.
        identity: identity of its machine, if its agent sent one.
    """

    name: str
    address: str
    state: str
    bytes_verified: int
    bytes_kept: int
    blocks_rewritten: int
    seconds: float
    rate_bytes_per_s: float
    loss: float
    blocks_repaired_by_parity: int
    blocks_repaired_by_nack: int
    nacks_count: int
    socket_drops_count: int
    demoted: bool
    error: str
    identity: MachineIdentity | None

    @classmethod
    def of(cls, record: ReceiverRecord, block_bytes: int, now: float) -> ReceiverSummary:
        """Return the result from its completion report, or from its last REPORT if there is none."""
        done = record.completion
        seconds = (record.finished_at or now) - record.joined_at
        bytes_verified = done.raw_bytes_verified if done else record.verified_count * block_bytes
        expected = done.datagrams_expected if done else record.expected_count
        received = done.datagrams_received if done else record.received_count
        return cls(
            name=record.name,
            address=record.address,
            state=record.state.value,
            bytes_verified=bytes_verified,
            bytes_kept=done.raw_bytes_kept if done else 0,
            blocks_rewritten=done.blocks_rewritten if done else 0,
            seconds=round(seconds, 3),
            rate_bytes_per_s=round(bytes_verified / max(seconds, 1e-3)),
            loss=round(max(0.0, 1.0 - received / expected), 5) if expected else 0.0,
            blocks_repaired_by_parity=done.blocks_repaired_by_parity
            if done
            else record.parity_repaired_count,
            blocks_repaired_by_nack=done.blocks_repaired_by_nack if done else 0,
            nacks_count=done.nacks_sent if done else record.nacks_sent_count,
            socket_drops_count=done.socket_drops if done else record.socket_drop_count,
            demoted=record.demoted,
            error=record.error or ("" if record.state is ReceiverState.COMPLETE else "not complete"),
            identity=record.identity,
        )

    @property
    def complete(self) -> bool:
        """True if it verified every byte."""
        return self.state == ReceiverState.COMPLETE.value


@dataclasses.dataclass(frozen=True, slots=True)
class CastSummary:
    """The summary of an ended cast.

    Attributes:
        seconds: time from the first image data to the end.
        main_group_seconds: time from the first image data to the end of all receivers but the stragglers; None if the
            cast ended before.
        bottleneck_seconds: all bottlenecks, with their times.
        required_count: receivers that the cast waited for.
        reason: why it ended, as text.
    """

    cast_id: str
    image_name: str
    image_id: str
    raw_bytes: int
    seconds: float
    main_group_seconds: float | None
    bytes_sent: int
    rate_bytes_per_s: float
    bottleneck_seconds: tuple[BottleneckTime, ...]
    required_count: int
    reason: str
    receivers: tuple[ReceiverSummary, ...]

    @classmethod
    def of(cls, session: SenderSession, now: float) -> CastSummary:
        """Return the summary of an ended session."""
        parameters = session.parameters
        statistics = session.statistics
        started_at = statistics.started_at
        seconds = 0.0 if started_at is None else (statistics.ended_at or now) - started_at
        return cls(
            cast_id=f"{parameters.cast_id:08x}",
            image_name=parameters.image_name,
            image_id=parameters.image_id.hex(),
            raw_bytes=parameters.raw_bytes,
            seconds=round(seconds, 3),
            main_group_seconds=_main_group_seconds(session),
            bytes_sent=statistics.bytes_transmitted,
            rate_bytes_per_s=round(statistics.bytes_transmitted / max(seconds, 1e-3)) if started_at else 0.0,
            bottleneck_seconds=BottleneckTime.all_of(session),
            required_count=session.policy.wait_for,
            reason=session.reason,
            receivers=tuple(
                ReceiverSummary.of(record, parameters.block_bytes, now)
                for record in session.receivers.values()
            ),
        )

    @property
    def complete_count(self) -> int:
        """Number of receivers that verified every byte."""
        return sum(receiver.complete for receiver in self.receivers)

    def require_success(self) -> None:
        """Check that every receiver that joined, and at least the required number, verified every byte.

        Raises:
            NotEnoughReceiversError: too few joined, though all of them are complete.
            ReceiversIncompleteError: some receivers aren't complete; the message names them.
        """
        incomplete = [receiver for receiver in self.receivers if not receiver.complete]
        if not self.receivers:
            raise NotEnoughReceiversError(
                f"no receiver joined before the deadline (--wait-for {self.required_count}): check that agents run on "
                "the same network (diskcast-agent doctor), and that the switch forwards multicast"
            )
        if incomplete:
            names = "; ".join(f"{receiver.name}: {receiver.error}" for receiver in incomplete[:_NAMED_MAX])
            more = f"; and {len(incomplete) - _NAMED_MAX} more" if len(incomplete) > _NAMED_MAX else ""
            raise ReceiversIncompleteError(
                f"{len(incomplete)} of {len(self.receivers)} receivers aren't complete ({names}{more}): run the same "
                "command again; they request only their missing blocks"
            )
        if len(self.receivers) < self.required_count:
            raise NotEnoughReceiversError(
                f"only {len(self.receivers)} of {self.required_count} receivers joined before the deadline, and those "
                "are complete: run the same command again for the others"
            )


def _main_group_seconds(session: SenderSession) -> float | None:
    statistics = session.statistics
    finished_at = statistics.main_finished_at
    if finished_at is None and session.outcome is SessionOutcome.COMPLETE:
        finished_at = statistics.ended_at  # no stragglers
    if statistics.started_at is None or finished_at is None:
        return None
    return round(finished_at - statistics.started_at, 3)
