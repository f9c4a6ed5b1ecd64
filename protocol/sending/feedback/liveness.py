"""Receivers that the sender gives up: silent ones, and those that are heard and make no progress."""

from __future__ import annotations

from typing import Final

from protocol.constants import RECEIVER_PROGRESS_TIMEOUT_S, REPORTS_PER_TIMEOUT
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.roster import Roster

STALLED: Final = (
    f"no progress for {RECEIVER_PROGRESS_TIMEOUT_S / 60:.0f} min, although it is heard: its data or its requests "
    "for repairs are lost; check switches and firewalls between it and the sender"
)
"""Error of a receiver that makes no progress."""


class Liveness:
    """Deadlines of the receivers that a cast serves."""

    def __init__(self, roster: Roster, receiver_timeout_s: float) -> None:
        self._roster = roster
        self._receiver_timeout_s = receiver_timeout_s

    def take_silent(self, report_interval_s: float, now: float) -> list[ReceiverRecord]:
        """Return the receivers that were silent for too long, with the error noted.

        Args:
            report_interval_s: time between two reports of one receiver.
            now: monotonic seconds.
        """
        timeout_s = max(self._receiver_timeout_s, REPORTS_PER_TIMEOUT * report_interval_s)
        silent = [record for record in self._roster.active if now - record.heard_at > timeout_s]
        for record in silent:
            record.finished_at = now
            record.error = f"silent for {timeout_s:.0f} s"
        return silent

    def take_stalled(self, elapsed_s: float, now: float) -> list[ReceiverRecord]:
        """Return the receivers that have made no progress for too long, with the error noted.

        A receiver that compares its disk, waits for the tail, or whose buffers wait for its disk isn't stalled.

        Args:
            elapsed_s: time since the last call in which the cast served its receivers.
            now: monotonic seconds.
        """
        stalled = []
        for record in self._roster.active:
            record.unserved_s = (
                record.unserved_s + elapsed_s if record.repairable and not record.fill else 0.0
            )
            if record.unserved_s > RECEIVER_PROGRESS_TIMEOUT_S:
                record.finished_at = now
                record.error = STALLED
                stalled.append(record)
        return stalled
