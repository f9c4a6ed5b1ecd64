"""Share the sender session between threads: one lock, and wake-ups after updates.

The event loop (feedback, joins, timers), the encoder thread and the transmitter thread use the same session. An update
may give the encoder work or move the next timer to an earlier time. This module wakes the encoder or the event loop
then, so that neither polls.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator

from protocol.sending.sender_session import SenderSession
from protocol.sending.transmission.send_plan import SendPlan


class LockedSession:
    """A sender session behind a lock."""

    def __init__(self, session: SenderSession, wake_timers: Callable[[], None]) -> None:
        """Share ``session``.

        Args:
            session: from now on used only through this object.
            wake_timers: called, from any thread, when a timer has moved to before the time that :meth:`arm_timer` gave.
        """
        self._session = session
        self._wake_timers = wake_timers
        self._changed = threading.Condition()
        self._armed_at = math.inf
        self._closed = False

    @contextlib.contextmanager
    def update(self) -> Iterator[tuple[SenderSession, float]]:
        """Yield the session and the current monotonic time, for calls that may change something."""
        with self._changed:
            now = time.monotonic()
            try:
                yield self._session, now
            finally:
                self._changed.notify()  # the encoder thread is the only one that waits
                if self._session.next_timer(now) < self._armed_at:
                    self._armed_at = -math.inf
                    self._wake_timers()

    @contextlib.contextmanager
    def read(self) -> Iterator[tuple[SenderSession, float]]:
        """Yield the session and the current monotonic time, for reading only."""
        with self._changed:
            yield self._session, time.monotonic()

    def arm_timer(self) -> float:
        """Return the seconds until the next timer; an earlier one wakes the event loop."""
        with self._changed:
            now = time.monotonic()
            self._armed_at = self._session.next_timer(now)
            return self._armed_at - now

    def wait_for_plan(self, symbols_max: Callable[[float], int]) -> SendPlan | None:
        """Wait for the next plan; return None after :meth:`close`.

        Args:
            symbols_max: returns the size limit of a plan for a rate in bytes per second.
        """
        with self._changed:
            while not self._closed:
                limit = symbols_max(self._session.rate_bytes_per_s)
                plan = self._session.next_plan(time.monotonic(), limit)
                if plan is not None:
                    return plan
                self._changed.wait()
            return None

    def close(self) -> None:
        """Make the encoder thread return."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
