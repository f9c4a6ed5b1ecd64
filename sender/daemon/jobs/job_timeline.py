"""The timeline of a running cast: points for charts, and events."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import structlog

from sender.cast.reporting.snapshot import CastView
from sender.daemon.jobs.record_mapping import timeline_point
from sender.store.records.casts import Cast, CastEvent, TimelinePoint
from sender.store.repositories.casts import Casts
from sender.store.write_behind import Recorder

POINT_INTERVAL_S: Final = 1.0
POINTS_MAX: Final = 1200
"""Points of a timeline: twenty minutes in full. Beyond that every second point is removed, repeatedly."""
EVENTS_MAX: Final = 5000
"""Events of a cast that are shown: five per machine in the largest cast."""

_log = structlog.get_logger(__name__)


class JobEvent(enum.StrEnum):
    """Kinds of events that a daemon adds to those of the session (:data:`EVENT_NAMES`)."""

    TAKEN_OVER = "taken_over"
    IMAGE_AWAITED = "image_awaited"
    STARTED_BY_HAND = "begun_by_hand"
    PAUSED = "paused"
    RESUMED = "resumed"
    CANCELLED = "cancelled"
    MACHINE_FAILED = "machine_failed"
    MACHINE_REVOKED = "machine_revoked"
    WAKE_STARTED = "wake_started"
    WAKE_ENDED = "wake_ended"
    MACHINE_NOT_AWAKE = "machine_not_awake"
    CAST_FAILED = "cast_failed"


class JobTimeline:
    """The points and events of one cast, those of earlier runs included. Not thread-safe: use it on the event loop.

    Attributes:
        points: for charts.
        events: in order of time.
    """

    def __init__(
        self, cast: Cast, points: Iterable[TimelinePoint], events: Iterable[CastEvent], recorder: Recorder
    ) -> None:
        self.points = list(points)
        self.events = list(events)
        self._cast_id = cast.cast_id
        self._run_count = cast.run_count
        self._recorder = recorder
        self._interval_s = POINT_INTERVAL_S
        self._next_at = 0.0
        self._log = _log.bind(cast=cast.cast_id)

    def add_event(self, kind: str, text: str, machine: str = "") -> None:
        """Add an event, log it and queue it for writing.

        Args:
            kind: a :class:`JobEvent`, or the name of an event of the session.
            text: for people.
            machine: name of the machine, if the event concerns one.
        """
        kind = str(kind)
        event = CastEvent(datetime.now(UTC), kind, machine, text)
        if len(self.events) < EVENTS_MAX:
            self.events.append(event)
            key = ("event", self._cast_id, str(self._run_count), str(len(self.events)))
            self._recorder.put(key, Casts.add_event, self._cast_id, event)
        self._log.info(kind, machine=machine or None, text=text)

    def is_due(self, now: float) -> bool:
        """Return whether it is time for the next point, at most once per interval."""
        if now < self._next_at:
            return False
        self._next_at = max(self._next_at + self._interval_s, now)
        return True

    def add_point(self, cast: Cast, view: CastView, parity: float) -> None:
        """Add a point; every second one is removed when there are too many."""
        at_s = 0.0
        if cast.gathering_at is not None:
            at_s = (datetime.now(UTC) - cast.gathering_at).total_seconds()
        self.points.append(timeline_point(at_s, view, parity))
        if len(self.points) > POINTS_MAX:
            del self.points[1::2]
            self._interval_s *= 2

    def save(self) -> None:
        """Queue the points for writing, at the end of the cast."""
        self._recorder.put(("timeline", self._cast_id), Casts.put_timeline, self._cast_id, tuple(self.points))
