"""Watch of the sender: silence, and signs of a restart."""

from __future__ import annotations

from typing import Final

from protocol.constants import ANNOUNCE_INTERVAL_S, RESTART_QUESTION_INTERVAL_S
from protocol.receiving.events import RestartSuspected, SenderSilent

_SILENT_S: Final = 3 * ANNOUNCE_INTERVAL_S
"""Silence of the sender until a :class:`SenderSilent` event: three missed announcements."""


class SenderWatch:
    """Watch of the sender, whose events come again as long as their reason lasts."""

    def __init__(self, now: float) -> None:
        """Start right after the join, which the sender has answered."""
        self._heard_at = now
        self._silence_reported_at = now
        self._restart_reported_at = now - RESTART_QUESTION_INTERVAL_S

    def note_heard(self, now: float) -> None:
        """Note that an authentic datagram arrived."""
        self._heard_at = now
        self._silence_reported_at = now

    def note_foreign_announcement(self, now: float) -> list[RestartSuspected]:
        """Return an event for an ANNOUNCE of this cast that another run made, or a forger."""
        if now < self._restart_reported_at + RESTART_QUESTION_INTERVAL_S:
            return []
        self._restart_reported_at = now
        return [RestartSuspected()]

    @property
    def silence_due_at(self) -> float:
        """Return the time at which the sender is silent for too long, monotonic seconds."""
        return self._silence_reported_at + _SILENT_S

    def silence(self, now: float) -> list[SenderSilent]:
        """Return an event if the sender is silent for too long."""
        if now < self.silence_due_at:
            return []
        self._silence_reported_at = now
        return [SenderSilent(now - self._heard_at)]
