"""How a reception goes, as one record: what progress, metrics and the completion report are made from."""

from __future__ import annotations

import dataclasses
import enum

from protocol.model.session_records import CompletionReport
from protocol.receiving.receiver_session import ReceiverSession


class ReceptionState(enum.StrEnum):
    """What the agent is doing."""

    WAITING = "waiting"
    """For a cast, in service mode."""
    JOINING = "joining"
    RECEIVING = "receiving"
    SILENT = "silent"
    """Nothing is heard from the sender."""
    REPORTING = "reporting"


@dataclasses.dataclass(frozen=True, slots=True)
class ReceptionStatus:
    """A snapshot; counts are since the agent joined first, over all runs of the sender."""

    state: ReceptionState
    seconds: float
    """Since the agent joined first."""
    raw_bytes: int
    raw_bytes_used: int
    """Those of the image that aren't unused: what there is to verify."""
    raw_bytes_verified: int
    raw_bytes_kept: int
    """Those of them that the target held already."""
    scanned_share: float
    """How much of the target was looked at for that, 0..1."""
    blocks_needed: int
    """Stored blocks that aren't verified; 0 before the manifest is there."""
    blocks_verified: int
    blocks_rejected: int
    blocks_rewritten: int
    """Blocks that read back wrong and were got again."""
    blocks_repaired_by_parity: int
    blocks_repaired_by_nack: int
    bytes_received: int
    bytes_written: int
    datagrams_expected: int
    datagrams_received: int
    socket_drops: int
    pool_drops: int
    nacks_sent: int
    rejoins: int
    rejects: dict[str, int]
    """Datagrams that were no use, by reason."""
    fill: float
    """Share of the assembly buffers in use, 0..1."""
    socket_queued_bytes: int
    bottleneck: str
    bottleneck_seconds: dict[str, float]
    """For how long each has been the bottleneck since data began."""
    demoted: bool
    """Whether this machine is so slow that it is finished after the others."""
    grtt_s: float

    @property
    def datagrams_lost(self) -> int:
        """What the sequence numbers say was sent and didn't arrive."""
        return max(0, self.datagrams_expected - self.datagrams_received)


@dataclasses.dataclass(slots=True)
class Totals:
    """Counters of the sessions that have ended; a session's own begin at its join."""

    blocks_rejected: int = 0
    blocks_repaired_by_parity: int = 0
    blocks_repaired_by_nack: int = 0
    bytes_received: int = 0
    datagrams_expected: int = 0
    datagrams_received: int = 0
    socket_drops: int = 0
    pool_drops: int = 0
    nacks_sent: int = 0
    rejects: dict[str, int] = dataclasses.field(default_factory=dict)

    def plus(self, session: ReceiverSession | None) -> Totals:
        """The counters with those of one more session."""
        if session is None:
            return dataclasses.replace(self, rejects=dict(self.rejects))
        statistics = session.statistics
        rejects = dict(self.rejects)
        for reason, count in session.rejects.items():
            rejects[reason] = rejects.get(reason, 0) + count
        return Totals(
            blocks_rejected=self.blocks_rejected + statistics.blocks_rejected_count,
            blocks_repaired_by_parity=self.blocks_repaired_by_parity
            + statistics.blocks_repaired_by_parity_count,
            blocks_repaired_by_nack=self.blocks_repaired_by_nack + statistics.blocks_repaired_by_nack_count,
            bytes_received=self.bytes_received + statistics.bytes_received,
            datagrams_expected=self.datagrams_expected + session.loss.expected_count,
            datagrams_received=self.datagrams_received + session.loss.received_count,
            socket_drops=self.socket_drops + statistics.socket_drop_count,
            pool_drops=self.pool_drops + session.pool_drop_count,
            nacks_sent=self.nacks_sent + statistics.nacks_sent_count,
            rejects=rejects,
        )


def completion_report(
    status: ReceptionStatus, *, seconds_receiving: float, error: str, exit_code: int
) -> CompletionReport:
    """A receiver's account of itself at its end; it went well unless there is an error."""
    return CompletionReport(
        success=not error,
        error=error,
        exit_code=exit_code,
        raw_bytes_verified=status.raw_bytes_verified,
        raw_bytes_kept=status.raw_bytes_kept,
        blocks_rewritten=status.blocks_rewritten,
        bytes_received=status.bytes_received,
        bytes_written=status.bytes_written,
        datagrams_expected=status.datagrams_expected,
        datagrams_received=status.datagrams_received,
        socket_drops=status.socket_drops,
        blocks_repaired_by_parity=status.blocks_repaired_by_parity,
        blocks_repaired_by_nack=status.blocks_repaired_by_nack,
        nacks_sent=status.nacks_sent,
        seconds_receiving=seconds_receiving,
        seconds_total=status.seconds,
    )


def idle_status() -> ReceptionStatus:
    """Of an agent that waits for its first cast: zeros."""
    values: dict[str, object] = {
        field.name: {} if field.name in ("rejects", "bottleneck_seconds") else 0
        for field in dataclasses.fields(ReceptionStatus)
    }
    return ReceptionStatus(
        **{**values, "state": ReceptionState.WAITING, "bottleneck": "none", "demoted": False}  # type: ignore[arg-type]
    )
