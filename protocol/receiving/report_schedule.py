"""The times of a receiver's REPORTs: regular ones, and early ones on trouble."""

from __future__ import annotations

import random

from protocol.constants import (
    QUEUE_DELAY_HIGH_S,
    REPORT_EARLY_FILL_STEP,
    REPORT_EARLY_INTERVAL_S,
    REPORT_EARLY_RATE_MAX,
)


class ReportSchedule:
    """Schedule of REPORTs; the first one is due at once.

    Attributes:
        interval_s: seconds between two regular reports; the sender sets it for the whole group.
        due_at: time of the next report, monotonic seconds.
    """

    def __init__(self, interval_s: float, rng: random.Random, now: float) -> None:
        self.interval_s = interval_s
        self.due_at = now
        self._rng = rng
        self._reported_at = now
        self._reported_fill = 0.0
        self._reported_queueing = False

    def take_due(self, now: float) -> bool:
        """Return whether a report is due; if so, plan the next regular one."""
        if now < self.due_at:
            return False
        self.due_at = now + self.interval_s
        return True

    def note_reported(self, fill: float, queue_delay_s: float, now: float) -> None:
        """Note the content of a report: only news compared with it is reported early."""
        self._reported_at = now
        self._reported_fill = fill
        self._reported_queueing = queue_delay_s > QUEUE_DELAY_HIGH_S

    def watch(self, fill: float, queue_delay_s: float, receiver_count: int, now: float) -> None:
        """Plan an early report if the buffers fill or a queue stands.

        All receivers behind a full link notice its queue at the same time: their reports are spread over time.

        Args:
            fill: share of the buffers that wait for this machine, 0..1.
            queue_delay_s: smallest recent queueing delay.
            receiver_count: receivers of the cast.
            now: monotonic seconds.
        """
        filling = fill > self._reported_fill + REPORT_EARLY_FILL_STEP
        queueing = queue_delay_s > QUEUE_DELAY_HIGH_S
        if not (filling or (queueing and not self._reported_queueing)):
            return
        spread_s = receiver_count / REPORT_EARLY_RATE_MAX if queueing else 0.0
        if self.due_at > self._reported_at + REPORT_EARLY_INTERVAL_S + spread_s:
            self.due_at = max(now, self._reported_at + REPORT_EARLY_INTERVAL_S) + (
                self._rng.uniform(0.0, spread_s) if receiver_count > 1 else 0.0
            )
        self._reported_queueing = queueing or self._reported_queueing
