"""The interface through which a cast reports its progress, and the clock that paces it."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Final, Protocol

from protocol.model.session_records import CastParameters
from protocol.sending.events import SenderEvent
from sender.cast.reporting.snapshot import CastSummary, CastView

JSON_INTERVAL_S: Final = 1.0
PLAIN_INTERVAL_S: Final = 5.0
LIVE_INTERVAL_S: Final = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class CastIntroduction:
    """The facts of a cast that starts to gather its room.

    Attributes:
        pin: the pin of the sender's certificate.
        join_code: the code that machines need; empty for an open cast and for one of a daemon.
    """

    parameters: CastParameters
    interface: str
    wait_for: int
    send_mode: str
    metrics_port: int | None
    pin: str
    join_code: str = dataclasses.field(repr=False)

    @property
    def receive_command(self) -> str:
        """The line to run on each machine, with its disk and its interface."""
        admission = f"--join {self.join_code}" if self.join_code else "--open"
        return f"diskcast-agent receive --target DISK --interface IF {admission}"


class Reporter(Protocol):
    """A receiver of a cast's progress and events; called from the event loop only."""

    interval_s: float
    """Seconds between two calls of :meth:`progress`."""

    def started(self, introduction: CastIntroduction) -> None:
        """Report that the cast gathers its room."""

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """Report an event of the session and the name of the receiver that it concerns."""

    def note(self, text: str) -> None:
        """Report something that the operator should know and that doesn't end the cast."""

    def progress(self, view: CastView) -> None:
        """Report the current state of the cast."""

    def finished(self, summary: CastSummary) -> None:
        """Report the end of the cast, successful or not."""

    def close(self) -> None:
        """Release the terminal, on every way out."""


class ProgressClock:
    """A clock for calls of :meth:`Reporter.progress`."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next_at = -math.inf

    def due(self) -> bool:
        """Return True at most once per interval."""
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + self._interval_s
        return True
