"""A cast that this daemon runs: its records, timeline and snapshot, and the commands on it.

::

    CastRun (session) ──► JobReporter ─┬─► JobRecords ───► database, by the recorder
                                       ├─► JobTimeline ──► database and log
                                       └─► JobSnapshot ───► live events
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog

from protocol.control.check_in import MACHINE_ID_KEY
from sender.cast.cast_run import CastRun
from sender.cast.session.feedback import FeedbackPort
from sender.cast.session.locked_session import LockedSession
from sender.cast.transmission.transmitter import TransmitterStatistics
from sender.daemon.jobs.cast_verdict import assigned_machine
from sender.daemon.jobs.job_records import JobRecords
from sender.daemon.jobs.job_reporter import JobReporter
from sender.daemon.jobs.job_snapshot import JobSnapshot
from sender.daemon.jobs.job_timeline import JobEvent, JobTimeline
from sender.daemon.jobs.owner import Owner
from sender.daemon.patching.room_patches import RoomPatches
from sender.store.records.casts import Cast, CastEvent, CastMachine, CastPhase, TimelinePoint
from sender.store.records.machine_states import MachineState
from sender.store.write_behind import Recorder

LATE_JOIN_S: Final = 60.0
"""Time from a machine's assignment to its join: an agent that hasn't joined within a minute gives up."""

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class EarlierRuns:
    """Rows of a cast's earlier runs."""

    machines: Sequence[CastMachine] = ()
    points: Sequence[TimelinePoint] = ()
    events: Sequence[CastEvent] = ()


class CastJob:
    """One run of a cast. Not thread-safe: use it on the event loop.

    Attributes:
        owner: name of this daemon's run in the database.
        records: the record and the machines' lines.
        timeline: points and events.
        snapshot: the cast as subscribers see it.
        reporter: reports the session's progress to the three above.
        run: the cast's session; None until it is open.
        ended_at: monotonic; None while it runs.
        cancel_reason: an operator's reason; None if the cast isn't cancelled.
        targets: names of the cast's planned machines, by id.
        patches: the patches of its machines; None to cast the image alone.
        task: the task that runs the cast; cancelled while no session exists yet.
        renewing: the session ends so that one with fresh keys takes its place.
    """

    def __init__(
        self, cast: Cast, recorder: Recorder, *, owner: Owner, earlier: EarlierRuns | None = None
    ) -> None:
        """Prepare a run.

        Args:
            cast: the record, leased by this daemon.
            recorder: writes to the database, without waiting.
            owner: name of this daemon's run; it writes only while it holds the cast's lease.
            earlier: rows of earlier runs of this cast.
        """
        earlier = earlier or EarlierRuns()
        self.owner = owner
        self.records = JobRecords(cast, earlier.machines, recorder, owner)
        self.timeline = JobTimeline(cast, earlier.points, earlier.events, recorder)
        self.snapshot = JobSnapshot(self.records)
        self.reporter = JobReporter(
            self.records,
            self.timeline,
            self.snapshot,
            put_machine=self.put_machine,
            on_gathering=self._stop_waiting_for_given_up,
        )
        self.run: CastRun | None = None
        self.ended_at: float | None = None
        self.cancel_reason: str | None = None
        self.targets: Mapping[str, str] = {}
        self.patches: RoomPatches | None = None
        self.task: asyncio.Task[None] | None = None
        self.renewing = False
        self._started_by_hand = False
        self._expected_count = 0
        self._late_count = 0
        self._loading_count = 0
        self._assigned_at: dict[str, float] = {}
        self._given_up_before_count = self.records.given_up_count
        self._log = _log.bind(cast=cast.cast_id)

    @property
    def cast(self) -> Cast:
        """Return the record now."""
        return self.records.cast

    @property
    def cast_id(self) -> str:
        """Return the cast's id."""
        return self.cast.cast_id

    # -- for metrics ------------------------------------------------------------------------------------------

    @property
    def room_id(self) -> str | None:
        """Return the room's id; None: any machine may join."""
        return self.cast.plan.room_id

    @property
    def locked_session(self) -> LockedSession:
        """Return the session."""
        assert self.run is not None
        return self.run.locked_session

    @property
    def transmitter(self) -> TransmitterStatistics:
        """Return the transmitter's counters."""
        assert self.run is not None
        return self.run.transmitter.statistics

    @property
    def feedback(self) -> FeedbackPort:
        """Return the feedback port's counters."""
        assert self.run is not None
        return self.run.feedback

    # -- commands ---------------------------------------------------------------------------------------------

    def attach(self, run: CastRun) -> None:
        """Use the session of ``run`` from now on; commands given while the image was fetched are passed to it."""
        self.run = run
        self._expected_count = self._late_count = 0
        self._expect_late()
        self.reporter.attach(run.locked_session)
        if self._started_by_hand:
            run.start_now()
        if self.cast.paused:
            run.pause()

    def start_data(self, actor_name: str) -> None:
        """Start the data with the machines that have joined."""
        self._started_by_hand = True
        if self.run is not None:
            self.run.start_now()
        self.timeline.add_event(
            JobEvent.STARTED_BY_HAND, f"{actor_name} starts the data with the machines that have joined"
        )

    def expect_more(self, count: int) -> None:
        """While the room gathers, wait for ``count`` machines besides those that have joined."""
        if self.run is not None and count != self._expected_count:
            self._expected_count = count
            self.run.expect_more(count)

    def expect_loading(self, count: int) -> None:
        """Don't end while ``count`` machines of the plan load the live system, within a limit."""
        self._loading_count = count
        self._expect_late()

    def pause(self, actor_name: str) -> None:
        """Pause the cast."""
        if self.run is not None:
            self.run.pause()
        self.records.change(paused=True)
        self.timeline.add_event(JobEvent.PAUSED, f"paused by {actor_name}")

    def resume(self, actor_name: str) -> None:
        """Resume a paused cast."""
        if self.run is not None:
            self.run.resume()
        self.records.change(paused=False)
        self.timeline.add_event(JobEvent.RESUMED, f"resumed by {actor_name}")

    def cancel(self, reason: str) -> None:
        """Cancel the cast; its task ends it."""
        self.cancel_reason = reason
        self.timeline.add_event(JobEvent.CANCELLED, reason)
        if self.run is not None:
            self.run.cancel(reason)
        elif self.task is not None:
            self.task.cancel()

    def expel(self, machine_id: str, actor_name: str) -> None:
        """Continue without a machine that was revoked.

        If it has joined, it knows the session's keys. The session then ends silently, and its successor has new keys:
        the other machines rejoin, as after a restart of the daemon.
        """
        row = self.records.machine_of(machine_id)
        joined = self._has_receiver(machine_id)
        if row is None and machine_id in self.targets:
            row = assigned_machine(self.cast_id, machine_id, self.targets[machine_id])
        if row is None or self.ended_at is not None:
            return
        text = f"revoked by {actor_name}"
        self.timeline.add_event(JobEvent.MACHINE_REVOKED, text, row.name)
        if joined:
            self.reporter.record_machines()
            row = self.records.machine_of(machine_id) or row
        if row.state is not MachineState.COMPLETE:
            self.put_machine(
                dataclasses.replace(row, state=MachineState.FAILED, error=text, ended_at=datetime.now(UTC))
            )
        if joined and self.run is not None:
            self.renewing = True
            self.run.abandon()

    def abandon(self) -> None:
        """Leave the cast silently, so that another daemon can resume it."""
        self.renewing = False
        if self.run is not None:
            self.run.abandon()
        elif self.task is not None:
            self.task.cancel()

    def refresh(self) -> None:
        """Take a view of a running session now, unless that was just done."""
        if self.run is not None and self.ended_at is None:
            self.reporter.refresh()

    # -- machines and the end ---------------------------------------------------------------------------------

    def put_machine(self, row: CastMachine) -> None:
        """Change a machine's line; the cast stops waiting for machines that have failed."""
        before = self.records.given_up_count
        self.records.put_machine(row)
        self._note_assigned(row)
        if self.records.given_up_count != before:
            self._stop_waiting_for_given_up()

    def record_failure(self, row: CastMachine) -> None:
        """Record a result that an agent reported itself and that the session doesn't know."""
        known = self.records.machines.get(row.name)
        if known is None or known.joined_at is None:
            text = f"{row.name} failed before it joined: {row.error}"
            self.timeline.add_event(JobEvent.MACHINE_FAILED, text, row.name)
        self.put_machine(row)

    def fail_unpatched(self, row: CastMachine) -> None:
        """End a machine that can't get a patch, before the session exists: its policy doesn't wait for the machine."""
        self.record_failure(row)
        self._given_up_before_count = self.records.given_up_count

    def end(self, phase: CastPhase, reason: str) -> None:
        """End the cast; no other run resumes it."""
        if self.run is not None:
            self.reporter.record_machines()
        self.patches = None  # they may hold secrets, and the job is shown for a while
        self.records.fail_unfinished(reason)
        self.records.change(phase=phase, reason=reason, ended_at=datetime.now(UTC), paused=False)
        self.timeline.save()
        self.records.audit_end()
        (self._log.info if phase is CastPhase.DONE else self._log.warning)(
            "cast_over",
            phase=phase.value,
            reason=reason,
            complete=self.cast.complete_count,
            failed=self.cast.failed_count,
            seconds=self.cast.seconds,
        )

    def _has_receiver(self, machine_id: str) -> bool:
        """Return whether the machine has joined the current session."""
        if self.run is None:
            return False
        with self.locked_session.read() as (session, _now):
            return any(
                record.inventory.get(MACHINE_ID_KEY) == machine_id for record in session.receivers.values()
            )

    def _note_assigned(self, row: CastMachine) -> None:
        if row.state is MachineState.ASSIGNED:
            self._assigned_at.setdefault(row.name, time.monotonic())
            self._expect_late()
        elif self._assigned_at.pop(row.name, None) is not None:
            self._expect_late()

    def _expect_late(self) -> None:
        """Let the session wait for machines that are about to join, even if all others have ended."""
        since = time.monotonic() - LATE_JOIN_S
        count = self._loading_count + sum(at > since for at in self._assigned_at.values())
        if self.run is not None and count != self._late_count:
            self._late_count = count
            self.run.expect_late(count)

    def _stop_waiting_for_given_up(self) -> None:
        """While the room gathers, don't wait for machines that have failed; a daemon's machine doesn't retry."""
        if self.run is None:
            return
        self.run.stop_waiting_for(self.records.given_up_count - self._given_up_before_count)
        if self.cast.phase is not CastPhase.GATHERING or not self.targets:
            return
        if self.records.given_up_ids().issuperset(self.targets):
            self.run.cancel("every machine has failed")
