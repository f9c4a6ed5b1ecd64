"""Records of a reception: its status at one moment, its counters, and its outcome."""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

from protocol.model.bottleneck import Cause
from protocol.model.session_records import CastParameters, CompletionReport
from protocol.receiving.receiver_session import ReceiverSession

BOTTLENECK_TEXTS: Final = {
    Cause.NETWORK: "its network connection",
    Cause.SOCKET: "its processor, which is too slow to receive everything",
    Cause.DECODE: "its processor, which is too slow to decode everything",
    Cause.DISK: "its disk",
}
"""Bottlenecks of a machine as its own messages name them."""


class ReceptionState(enum.StrEnum):
    """State of an agent."""

    WAITING = "waiting"
    """Waiting for a cast, in service mode."""
    JOINING = "joining"
    RECEIVING = "receiving"
    SILENT = "silent"
    """Receiving, but nothing is heard from the sender."""
    REPORTING = "reporting"


@dataclasses.dataclass(frozen=True, slots=True)
class ReceptionStatus:
    """A snapshot of a reception; counts cover all runs of the sender since the first join."""

    state: ReceptionState
    target: str
    """Path of the chosen target, also if a rule such as ``auto`` chose it; empty before the first cast."""
    seconds: float
    """Time since the first join was tried."""
    raw_bytes: int
    raw_bytes_used: int
    """Bytes of the image to verify: all but unused blocks."""
    raw_bytes_verified: int
    raw_bytes_kept: int
    """Verified bytes that were on the target before the cast."""
    scanned_share: float
    """Share of the target that was scanned for such bytes, 0..1."""
    blocks_needed: int
    """Stored blocks that aren't verified; 0 before the manifest has arrived."""
    blocks_verified: int
    blocks_rejected: int
    blocks_rewritten: int
    """Blocks that failed read-back and were requested again."""
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
    """Rejected datagrams by reason."""
    fill: float
    """Share of the assembly buffers in use, 0..1."""
    socket_queued_bytes: int
    bottleneck: Cause
    bottleneck_seconds: dict[Cause, float]
    """Time for which each was the bottleneck, since the first data."""
    demoted: bool
    """True while the sender finishes this machine after the others because it is too slow."""
    grtt_s: float
    unsigned_allowed: bool
    """True if the image has no trusted signature, and this machine's options allow that."""
    patch_id: str = ""
    """Id of the machine patch that is written with the image, in hexadecimal; empty without one."""

    @property
    def target_prepared(self) -> bool:
        """Return whether the manifest has arrived, after which the target's content may change."""
        return self.blocks_needed > 0 or self.raw_bytes_verified > 0

    @property
    def datagrams_lost(self) -> int:
        """Return the number of datagrams that were sent, by their sequence numbers, but didn't arrive."""
        return max(0, self.datagrams_expected - self.datagrams_received)


@dataclasses.dataclass(frozen=True, slots=True)
class Reception:
    """A successful reception: every byte is verified on the target."""

    parameters: CastParameters
    status: ReceptionStatus
    report: CompletionReport
    reported: bool
    """True if the sender accepted the report."""
    fitted: tuple[str, ...]
    """Steps that fitted the image to the target, one sentence each."""


@dataclasses.dataclass(slots=True)
class SessionTotals:
    """Counters summed over sessions; a session's own counters start at its join."""

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

    def plus(self, session: ReceiverSession | None) -> SessionTotals:
        """Return these counters plus those of ``session``."""
        if session is None:
            return dataclasses.replace(self, rejects=dict(self.rejects))
        statistics = session.statistics
        rejects = dict(self.rejects)
        for reason, count in session.rejects.items():
            rejects[reason] = rejects.get(reason, 0) + count
        return SessionTotals(
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
    """Return the report of a reception's end; it succeeded if ``error`` is empty."""
    return CompletionReport(
        success=not error,
        error=error,
        exit_code=exit_code,
        unsigned_allowed=status.unsigned_allowed,
        patch_id=bytes.fromhex(status.patch_id) or None,
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
    """Return the status of an agent that waits for its first cast."""
    values: dict[str, object] = {
        field.name: {} if field.name in ("rejects", "bottleneck_seconds") else 0
        for field in dataclasses.fields(ReceptionStatus)
    }
    return ReceptionStatus(
        **{
            **values,
            "state": ReceptionState.WAITING,
            "target": "",
            "bottleneck": Cause.NONE,
            "demoted": False,
            "unsigned_allowed": False,
            "patch_id": "",
        }  # type: ignore[arg-type]
    )
