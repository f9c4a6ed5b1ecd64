"""Map the session's figures to the daemon's records, for the database and for subscribers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from protocol.control.check_in import MACHINE_ID_KEY
from protocol.sending.receiver_record import ReceiverRecord
from sender.cast.reporting.snapshot import CastView, ReceiverSummary, ReceiverView
from sender.store.records.casts import Cast, CastMachine, TimelinePoint
from sender.store.records.live import LiveCast, LiveMachine
from sender.store.records.machine_states import MachineState


def cast_machine(
    cast_id: str, record: ReceiverRecord, block_bytes: int, now: float, wall: datetime
) -> CastMachine:
    """Return a receiver's history line, as of ``now`` (monotonic), which is ``wall`` (UTC)."""
    summary = ReceiverSummary.of(record, block_bytes, now)
    ended = record.finished_at if not record.state.active else None
    return CastMachine(
        cast_id=cast_id,
        machine_id=record.inventory.get(MACHINE_ID_KEY) or None,
        name=record.name,
        address=record.address,
        state=MachineState(summary.state),
        error="" if record.state.active else summary.error,
        exit_code=record.completion.exit_code if record.completion else None,
        bottleneck=record.bottleneck.value,
        progress=round(record.progress, 4),
        bytes_verified=summary.bytes_verified,
        bytes_kept=summary.bytes_kept,
        blocks_rewritten=summary.blocks_rewritten,
        seconds=summary.seconds,
        rate_bytes_per_s=summary.rate_bytes_per_s,
        loss=summary.loss,
        nacks_count=summary.nacks_count,
        socket_drops_count=summary.socket_drops_count,
        demoted=summary.demoted,
        joined_at=wall - timedelta(seconds=now - record.joined_at),
        ended_at=None if ended is None else wall - timedelta(seconds=now - ended),
        unsigned_allowed=record.completion.unsigned_allowed if record.completion else False,
        patch_id=record.completion.patch_id.hex() if record.completion and record.completion.patch_id else "",
    )


def live_machine(
    cast: Cast, view: ReceiverView, row: CastMachine, *, position: str, online: bool
) -> LiveMachine:
    """Return a machine of a running cast."""
    return LiveMachine(
        machine_id=row.machine_id,
        name=view.name,
        room_id=cast.plan.room_id,
        position=position,
        address=row.address,
        online=online or view.active,
        state=MachineState(view.standing),
        cast_id=cast.cast_id,
        progress=view.progress,
        rate_bytes_per_s=view.rate_bytes_per_s if view.active else 0.0,
        loss=view.loss,
        bottleneck=view.bottleneck if view.active else "",
        eta_s=eta_s(cast, view, row, datetime.now(UTC)),
        error=view.error,
        customised=bool(row.patch_id),
    )


def eta_s(cast: Cast, view: ReceiverView, row: CastMachine, now: datetime) -> float | None:
    """Return the time until the machine is complete, at its average pace so far; None if unknown."""
    if cast.paused or not view.active or not 0.0 < view.progress < 1.0:
        return None
    if cast.casting_at is None or row.joined_at is None:
        return None
    # Not the row's own seconds: those are as old as its last save.
    seconds = (now - max(cast.casting_at, row.joined_at)).total_seconds()
    return round(max(0.0, seconds) * (1.0 - view.progress) / view.progress, 1)


def timeline_point(at_s: float, view: CastView, parity: float) -> TimelinePoint:
    """Return the timeline point of this second."""
    active = [receiver for receiver in view.receivers if receiver.active]
    main = [receiver for receiver in active if not receiver.demoted] or active
    count = max(1, len(main))
    return TimelinePoint(
        at_s=round(at_s, 1),
        rate_bytes_per_s=view.achieved_bytes_per_s,
        goodput_bytes_per_s=round(sum(receiver.rate_bytes_per_s for receiver in main) / count),
        loss=round(sum(receiver.loss for receiver in main) / count, 5),
        parity=round(parity, 4),
        progress=cast_progress(view),
        active_count=len(active),
        complete_count=sum(receiver.state == MachineState.COMPLETE for receiver in view.receivers),
        bottleneck=view.bottleneck.text if view.casting else "",
    )


def cast_progress(view: CastView) -> float:
    """Return the progress of the slowest machine, stragglers aside while there are others."""
    active = [receiver for receiver in view.receivers if receiver.active]
    main = [receiver for receiver in active if not receiver.demoted] or active
    if main:
        return min(receiver.progress for receiver in main)
    return 1.0 if any(receiver.state == MachineState.COMPLETE for receiver in view.receivers) else 0.0


def idle_cast(cast: Cast, *, local: bool) -> LiveCast:
    """Return a cast without live figures: planned, ended, or another daemon's."""
    return LiveCast(
        cast=cast,
        local=local,
        rate_bytes_per_s=0.0,
        achieved_bytes_per_s=0.0,
        elapsed_s=cast.seconds,
        eta_s=None,
        pass_index=0,
        pass_progress=0.0,
        bottleneck="",
    )


def ended_machine(row: CastMachine, room_id: str | None) -> LiveMachine:
    """Return a machine that is known only by its history line."""
    return LiveMachine(
        machine_id=row.machine_id,
        name=row.name,
        room_id=room_id,
        position="",
        address=row.address,
        online=False,
        state=row.state,
        cast_id=row.cast_id,
        progress=row.progress,
        rate_bytes_per_s=0.0,
        loss=row.loss,
        bottleneck="",
        eta_s=None,
        error=row.error,
        customised=bool(row.patch_id),
    )
