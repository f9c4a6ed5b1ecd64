"""Completion reports for tests."""

from __future__ import annotations

from protocol.model.session_records import CompletionReport


def completion(*, success: bool = True, error: str = "") -> CompletionReport:
    """Return a completion report; all its figures differ, which exposes swapped fields."""
    return CompletionReport(
        success=success,
        error=error,
        exit_code=0 if success else 50,
        unsigned_allowed=True,
        raw_bytes_verified=1000,
        raw_bytes_kept=800,
        blocks_rewritten=7,
        bytes_received=2000,
        bytes_written=900,
        datagrams_expected=100,
        datagrams_received=90,
        socket_drops=1,
        blocks_repaired_by_parity=2,
        blocks_repaired_by_nack=3,
        nacks_sent=4,
        seconds_receiving=5.5,
        seconds_total=6.5,
    )
