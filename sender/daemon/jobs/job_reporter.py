"""The reporter of a daemon's cast: events and progress of its session become records, events and snapshots."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog

from protocol.model.session_records import ReceiverId
from protocol.sending.events import CastFinished, CastingStarted, MainGroupFinished, SenderEvent
from protocol.sending.receiver_record import ReceiverRecord
from sender.cast.reporting.event_text import EVENT_NAMES, event_text
from sender.cast.reporting.reporter import CastIntroduction
from sender.cast.reporting.snapshot import CastSummary, CastView
from sender.cast.session.locked_session import LockedSession
from sender.daemon.jobs.job_records import JobRecords
from sender.daemon.jobs.job_snapshot import JobSnapshot
from sender.daemon.jobs.job_timeline import JobTimeline
from sender.daemon.jobs.record_mapping import cast_machine, cast_progress
from sender.store.records.casts import CastMachine, CastPhase

VIEW_INTERVAL_S: Final = 0.5
"""Interval of views of a cast without subscribers."""
SAVE_INTERVAL_S: Final = 5.0
"""Interval of writing a running cast's progress to the database, for other daemons and for a restart."""

_log = structlog.get_logger(__name__)


class JobReporter:
    """A :class:`sender.cast.reporting.reporter.Reporter`. Not thread-safe: use it on the event loop."""

    interval_s = VIEW_INTERVAL_S

    def __init__(
        self,
        records: JobRecords,
        timeline: JobTimeline,
        snapshot: JobSnapshot,
        *,
        put_machine: Callable[[CastMachine], None],
        on_gathering: Callable[[], None],
    ) -> None:
        """Report to these.

        Args:
            records: get the cast's progress.
            timeline: gets points and events.
            snapshot: gets views.
            put_machine: gets machines' lines.
            on_gathering: called when the session has started.
        """
        self._records = records
        self._timeline = timeline
        self._snapshot = snapshot
        self._put_machine = put_machine
        self._on_gathering = on_gathering
        self._locked_session: LockedSession | None = None
        self._earlier_seconds = records.cast.seconds
        self._earlier_bytes_sent = records.cast.bytes_sent
        self._saved_at = 0.0
        self._log = _log.bind(cast=records.cast.cast_id)

    def attach(self, locked_session: LockedSession) -> None:
        """Read this session from now on."""
        self._locked_session = locked_session

    # -- the Reporter protocol --------------------------------------------------------------------------------

    def started(self, introduction: CastIntroduction) -> None:
        """Record that the cast gathers."""
        parameters, cast = introduction.parameters, self._records.cast
        self._records.change(
            phase=cast.phase if cast.phase.live else CastPhase.GATHERING,
            group=parameters.group,
            port=parameters.port,
            control_url=parameters.control_url,
            control_pin=introduction.pin,
            gathering_at=cast.gathering_at or datetime.now(UTC),
        )
        self._log.info(
            "cast_gathering",
            image=cast.image_name,
            room=cast.plan.room_id,
            group=parameters.group,
            control_url=parameters.control_url,
            wait_for=introduction.wait_for,
            run=cast.run_count,
        )
        self._on_gathering()

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """Record an event of the session."""
        self._timeline.add_event(EVENT_NAMES[type(event)], event_text(event, receiver), receiver or "")
        receiver_id = getattr(event, "receiver_id", None)
        if receiver_id is not None:
            self._record_machine(receiver_id)
        match event:
            case CastingStarted():
                casting_at = self._records.cast.casting_at or datetime.now(UTC)
                self._records.change(phase=CastPhase.CASTING, casting_at=casting_at)
            case MainGroupFinished():
                self._records.change(phase=CastPhase.TAIL)
            case CastFinished():
                self.record_machines()

    def note(self, text: str) -> None:
        """Log a warning that doesn't end the cast."""
        self._log.warning("cast_note", text=text)

    def progress(self, view: CastView) -> None:
        """Record the current progress."""
        self._record_progress(view)

    def finished(self, summary: CastSummary) -> None:
        """Record the final figures; the executor decides the verdict."""
        self._records.set_progress(
            seconds=round(self._earlier_seconds + summary.seconds, 3),
            bytes_sent=self._earlier_bytes_sent + summary.bytes_sent,
        )
        self._record_progress(self._view(), last=True)

    def close(self) -> None:
        """Do nothing: there is no terminal to restore."""

    # -- for the job ------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take a view now, unless that was just done."""
        if not self._snapshot.is_fresh:
            self._record_progress(self._view())

    def record_machines(self) -> None:
        """Record the line of every receiver of the session."""
        assert self._locked_session is not None
        with self._locked_session.read() as (session, now):
            block_bytes = session.parameters.block_bytes
            rows = [self._row(record, block_bytes, now) for record in session.receivers.values()]
        for row in rows:
            known = self._records.machines.get(row.name)
            # A machine's own report of its end counts, though the session still waits for it.
            if known is None or known.ended_at is None or (row.ended_at and known.state != row.state):
                self._put_machine(row)

    def _record_machine(self, receiver_id: ReceiverId) -> None:
        assert self._locked_session is not None
        with self._locked_session.read() as (session, now):
            row = self._row(session.receivers[receiver_id], session.parameters.block_bytes, now)
        self._put_machine(row)

    def _row(self, record: ReceiverRecord, block_bytes: int, now: float) -> CastMachine:
        cast_id = self._records.cast.cast_id
        return self._records.merge(cast_machine(cast_id, record, block_bytes, now, datetime.now(UTC)))

    def _view(self) -> CastView:
        assert self._locked_session is not None
        with self._locked_session.read() as (session, now):
            return CastView.of(session, now)

    def _record_progress(self, view: CastView, *, last: bool = False) -> None:
        """Record a view; the last one is a point of the timeline, however soon after the previous point."""
        now = time.monotonic()
        self._snapshot.update(view, now)
        self._records.set_progress(
            seconds=round(self._earlier_seconds + view.elapsed_s, 3),
            bytes_sent=self._earlier_bytes_sent + view.bytes_sent,
            progress=cast_progress(view),
        )
        if self._timeline.is_due(now) or last:
            self._timeline.add_point(self._records.cast, view, self._parity())
        if now - self._saved_at >= SAVE_INTERVAL_S:
            self._saved_at = now
            self._records.save_progress()

    def _parity(self) -> float:
        assert self._locked_session is not None
        with self._locked_session.read() as (session, _now):
            return session.parity
