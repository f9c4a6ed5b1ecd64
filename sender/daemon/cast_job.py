"""A cast that this daemon runs: what its session tells becomes records, for the database and for those who watch."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog

from protocol.model.session_records import ReceiverId
from protocol.sending.events import (
    CastFinished,
    CastingStarted,
    MainGroupFinished,
    SenderEvent,
)
from protocol.sending.receiver_record import ReceiverRecord
from sender.cast.cast_run import CastRun
from sender.cast.reporting.event_text import EVENT_NAMES, event_words
from sender.cast.reporting.reporter import CastIntroduction
from sender.cast.reporting.snapshot import CastSummary, CastView, ReceiverView
from sender.cast.session.feedback import FeedbackPort
from sender.cast.session.locked_session import LockedSession
from sender.cast.transmission.transmitter import TransmitterStatistics
from sender.daemon.leases import Owner
from sender.daemon.record_mapping import cast_machine, cast_progress, live_machine, timeline_point
from sender.store.records.casts import Cast, CastEvent, CastMachine, CastPhase, TimelinePoint
from sender.store.records.live import LiveCast, LiveMachine
from sender.store.records.machine_states import (
    GIVEN_UP_STATES,
    NOT_JOINED_STATES,
    UNFINISHED_STATES,
    UNSUCCESSFUL_STATES,
    MachineState,
)
from sender.store.repositories.audit import new_entry_key
from sender.store.write_behind import Recorder

VIEW_INTERVAL_S: Final = 0.5
"""How often a cast is looked at while nobody watches it."""
FRESH_S: Final = 0.1
"""Those who watch at the same moment see the same picture."""
POINT_INTERVAL_S: Final = 1.0
POINTS_MAX: Final = 1200
"""Points of a timeline: twenty minutes in full; of a longer cast every second one is left out, again and again."""
EVENTS_MAX: Final = 5000
"""Events that are shown of a cast: five of each machine of the largest."""
SAVE_INTERVAL_S: Final = 5.0
"""How often a running cast's progress goes to the database, for other daemons and for a restart."""

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of a cast's earlier runs."""

    machines: Sequence[CastMachine] = ()
    points: Sequence[TimelinePoint] = ()
    events: Sequence[CastEvent] = ()


class CastJob:
    """One run of a cast; the reporter of its :class:`sender.cast.cast_run.CastRun`.

    Attributes:
        cast: the record as it is now.
        machines: lines of history by the receivers' names; those of earlier runs too.
        view: the latest picture; None before the first.
        points: of its charts.
        events: what happened in it.
        run: None until it speaks to the room, and when it no longer does.
        ended_at: monotonic; None while it runs.
        cancel_reason: why an operator cancelled it; None if nobody did.
        targets: names of the machines that it is for, by id; empty: any machine that joins.
        task: runs it; cancelled while no session exists yet.
    """

    interval_s = VIEW_INTERVAL_S

    def __init__(
        self,
        cast: Cast,
        recorder: Recorder,
        *,
        owner: Owner,
        earlier: Earlier | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            cast: the record, leased by this daemon.
            recorder: takes what is to be remembered, and never waits.
            owner: name of this daemon's run in the database; it writes only while it holds the cast's lease.
            earlier: what earlier runs of this cast did.
        """
        earlier = earlier or Earlier()
        self.cast = cast
        self.machines: dict[str, CastMachine] = {row.name: row for row in earlier.machines}
        self.view: CastView | None = None
        self._states = Counter(row.state for row in self.machines.values())
        self.points = list(earlier.points)
        self.events = list(earlier.events)
        self.run: CastRun | None = None
        self.ended_at: float | None = None
        self.cancel_reason: str | None = None
        self.targets: Mapping[str, str] = {}
        self.task: asyncio.Task[None] | None = None
        self._started_by_hand = False
        self._gone_before_count = self._gone_count
        self._recorder = recorder
        self.owner = owner
        self._log = _log.bind(cast=cast.cast_id)
        self._earlier_seconds = cast.seconds
        self._earlier_bytes_sent = cast.bytes_sent
        self._point_every_s = POINT_INTERVAL_S
        self._viewed_at = -math.inf
        self._drawn: tuple[CastView | None, int, list[LiveMachine]] = (None, -1, [])
        self._drawn_machines: dict[str, tuple[object, LiveMachine]] = {}
        self._change_count = 0
        self._point_at = 0.0
        self._saved_at = 0.0

    # -- commands ---------------------------------------------------------------------------------------------

    def attach(self, run: CastRun) -> None:
        """Use the session of ``run`` from now on; commands given while the image was fetched are passed to it."""
        self.run = run
        if self._started_by_hand:
            run.start_now()
        if self.cast.paused:
            run.pause()

    def start_data(self, actor_name: str) -> None:
        """Start the data with the machines that have joined."""
        self._started_by_hand = True
        if self.run is not None:
            self.run.start_now()
        self.report("begun_by_hand", f"{actor_name} starts the data with the machines that have joined")

    def pause(self, actor_name: str) -> None:
        """Pause the cast."""
        if self.run is not None:
            self.run.pause()
        self.change(paused=True)
        self.report("paused", f"paused by {actor_name}")

    def resume(self, actor_name: str) -> None:
        """Resume a paused cast."""
        if self.run is not None:
            self.run.resume()
        self.change(paused=False)
        self.report("resumed", f"resumed by {actor_name}")

    def cancel(self, reason: str) -> None:
        """Cancel the cast; its task ends it."""
        self.cancel_reason = reason
        self.report("cancelled", reason)
        if self.run is not None:
            self.run.cancel(reason)
        elif self.task is not None:
            self.task.cancel()

    def abandon(self) -> None:
        """Leave the cast silently, so that another daemon can resume it."""
        if self.run is not None:
            self.run.abandon()
        elif self.task is not None:
            self.task.cancel()

    # -- for metrics ------------------------------------------------------------------------------------------

    @property
    def cast_id(self) -> str:
        """Eight hexadecimal digits."""
        return self.cast.cast_id

    @property
    def room_id(self) -> str | None:
        """Its room's."""
        return self.cast.plan.room_id

    @property
    def image_name(self) -> str:
        """Its image's."""
        return self.cast.image_name

    @property
    def shared(self) -> LockedSession:
        """The session."""
        assert self.run is not None
        return self.run.shared

    @property
    def transmitter(self) -> TransmitterStatistics:
        """Counters of what was sent."""
        assert self.run is not None
        return self.run.transmitter.statistics

    @property
    def feedback(self) -> FeedbackPort:
        """Counters of what came back."""
        assert self.run is not None
        return self.run.feedback

    # -- the reporter's part ----------------------------------------------------------------------------------

    def started(self, introduction: CastIntroduction) -> None:
        """The cast gathers."""
        parameters = introduction.parameters
        now = datetime.now(UTC)
        going_on = self.cast.phase.live
        self.change(
            phase=self.cast.phase if going_on else CastPhase.GATHERING,
            group=parameters.group,
            port=parameters.port,
            control_url=parameters.control_url,
            gathering_at=self.cast.gathering_at or now,
        )
        self._log.info(
            "cast_gathering",
            image=self.cast.image_name,
            room=self.room_id,
            group=parameters.group,
            control_url=parameters.control_url,
            wait_for=introduction.wait_for,
            run=self.cast.run_count,
        )
        self._excuse_gone()  # some failed while the image was being fetched

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """The session's event."""
        text = event_words(event, receiver)
        self.report(EVENT_NAMES[type(event)], text, receiver or "")
        receiver_id = getattr(event, "receiver_id", None)
        if receiver_id is not None:
            self._note_machine(receiver_id)
        match event:
            case CastingStarted():
                self.change(phase=CastPhase.CASTING, casting_at=self.cast.casting_at or datetime.now(UTC))
            case MainGroupFinished():
                self.change(phase=CastPhase.TAIL)
            case CastFinished():
                self._note_all_machines()

    def note(self, text: str) -> None:
        """Something that doesn't end the cast."""
        self._log.warning("cast_note", text=text)

    def progress(self, view: CastView) -> None:
        """The cast now."""
        now = time.monotonic()
        self.view, self._viewed_at = view, now
        self.cast = dataclasses.replace(
            self.cast,
            progress=cast_progress(view),
            seconds=round(self._earlier_seconds + view.elapsed_s, 3),
            bytes_sent=self._earlier_bytes_sent + view.bytes_sent,
        )
        if now >= self._point_at:
            self._point_at = max(self._point_at + self._point_every_s, now)
            self._add_point(view)
        if now - self._saved_at >= SAVE_INTERVAL_S:
            self._saved_at = now
            self._save_cast(lasting=False)

    def finished(self, summary: CastSummary) -> None:
        """The cast has ended; the supervisor says what that means."""
        self.cast = dataclasses.replace(
            self.cast,
            seconds=round(self._earlier_seconds + summary.seconds, 3),
            bytes_sent=self._earlier_bytes_sent + summary.bytes_sent,
        )
        self._point_at = 0.0  # the timeline shows the end, however short after its last point
        self.progress(self._look())

    def close(self) -> None:
        """There is no terminal to give back."""

    # -- the supervisor's part --------------------------------------------------------------------------------

    def change(self, **fields: object) -> None:
        """Change the record, here and in the database."""
        self.cast = dataclasses.replace(self.cast, **fields)  # type: ignore[arg-type]  # Cast's own fields
        self._count_machines()
        self._save_cast(lasting=True)

    def report(self, kind: str, text: str, machine: str = "") -> None:
        """Something happened: into the timeline, the log and the database."""
        event = CastEvent(datetime.now(UTC), kind, machine, text)
        if len(self.events) < EVENTS_MAX:
            self.events.append(event)
            key = ("event", self.cast_id, str(self.cast.run_count), str(len(self.events)))
            self._recorder.put(key, "casts.add_event", self.cast_id, event)
        self._log.info(kind, machine=machine or None, text=text)

    def put_machine(self, row: CastMachine) -> None:
        """A machine's line has changed."""
        known = self.machines.get(row.name)
        if known == row:
            return
        if known is not None:
            self._states[known.state] -= 1
        self._states[row.state] += 1
        self.machines[row.name] = row
        self._change_count += 1
        self._recorder.put(
            ("machine", self.cast_id, row.name), "casts.put_machine", row, lease=str(self.owner)
        )
        self._count_machines()
        if row.state in GIVEN_UP_STATES or (known is not None and known.state in GIVEN_UP_STATES):
            self._excuse_gone()

    def record_failure(self, row: CastMachine) -> None:
        """A machine says itself how it ended, and the session doesn't know."""
        known = self.machines.get(row.name)
        if known is None or known.joined_at is None:
            self.report("machine_failed", f"{row.name} failed before it joined: {row.error}", row.name)
        self.put_machine(row)

    def end(self, phase: CastPhase, reason: str) -> None:
        """This was the cast's last run."""
        if self.run is not None:
            self._note_all_machines()
        self._end_machines(reason)
        self.change(phase=phase, reason=reason, ended_at=datetime.now(UTC), paused=False)
        self._change_count += 1
        self._recorder.put(("timeline", self.cast_id), "casts.put_timeline", self.cast_id, tuple(self.points))
        (self._log.info if phase is CastPhase.DONE else self._log.warning)(
            "cast_over",
            phase=phase.value,
            reason=reason,
            complete=self.cast.complete_count,
            failed=self.cast.failed_count,
            seconds=self.cast.seconds,
        )
        self._audit_end()

    def _audit_end(self) -> None:
        cast, key = self.cast, new_entry_key()
        detail = {
            "image": cast.image_name,
            "room": cast.plan.room_id,
            "reason": cast.reason,
            "complete": cast.complete_count,
            "failed": cast.failed_count,
        }
        self._recorder.put(
            ("audit", key),
            "audit.add",
            f"daemon {self.owner.name}",
            f"cast.{cast.phase.value}",
            f"cast {cast.cast_id}",
            detail,
            entry_key=key,
            at=datetime.now(UTC),
        )

    def machine_of(self, machine_id: str) -> CastMachine | None:
        """What this cast did to a machine of the database."""
        return next((row for row in self.machines.values() if row.machine_id == machine_id), None)

    @property
    def _gone_count(self) -> int:
        return sum(self._states[state] for state in GIVEN_UP_STATES)

    def _excuse_gone(self) -> None:
        """While the room gathers, machines that have failed aren't waited for; a daemon's machine doesn't try again."""
        if self.run is None:
            return
        self.run.stop_waiting_for(self._gone_count - self._gone_before_count)
        if self.cast.phase is not CastPhase.GATHERING or not self.targets:
            return
        gone = {row.machine_id for row in self.machines.values() if row.state in GIVEN_UP_STATES}
        if gone.issuperset(self.targets):
            self.run.cancel("every machine has failed")

    # -- for those who watch ----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the cast now, unless that was just done."""
        if self.run is not None and self.ended_at is None and time.monotonic() - self._viewed_at > FRESH_S:
            self.progress(self._look())

    def _look(self) -> CastView:
        with self.shared.read() as (session, now):
            return CastView.of(session, now)

    def live_cast(self) -> LiveCast:
        """The cast now."""
        view = self.view
        if view is None or self.cast.phase.ended:
            return idle_cast(self.cast, local=True)
        return LiveCast(
            cast=self.cast,
            local=True,
            rate_bytes_per_s=0.0 if self.cast.paused else view.rate_bytes_per_s,
            achieved_bytes_per_s=0.0 if self.cast.paused else view.achieved_bytes_per_s,
            elapsed_s=self.cast.seconds,
            eta_s=None if self.cast.paused else view.eta_s,
            pass_index=view.pass_index,
            pass_progress=view.pass_progress,
            bottleneck=view.bottleneck.text if view.casting and not self.cast.paused else "",
        )

    def live_machines(self) -> list[LiveMachine]:
        """Everybody who has joined; the same list as long as nothing has changed."""
        view, change_count, machines = self._drawn
        if self.view is None or (view is self.view and change_count == self._change_count):
            return machines
        views: dict[str, ReceiverView] = {}
        # Of an ended cast its account counts: its session still hopes for everybody.
        if not self.cast.phase.ended:
            views = {receiver.name: receiver for receiver in self.view.receivers}
        machines = [
            self._live_machine(views[name], row)
            if name in views
            else machine_of_history(row, self.cast.plan.room_id)
            for name, row in self.machines.items()
        ]
        self._drawn = self.view, self._change_count, machines
        return machines

    # -- inside -----------------------------------------------------------------------------------------------

    def _live_machine(self, view: ReceiverView, row: CastMachine) -> LiveMachine:
        """As it was, time to go included, until something else of it changes: only changes are sent to who watches."""
        of = (view, row, self.cast.paused, self.cast.casting_at)
        drawn = self._drawn_machines.get(row.name)
        if drawn is None or drawn[0] != of:
            drawn = of, live_machine(self.cast, view, row, position="", online=False)
            self._drawn_machines[row.name] = drawn
        return drawn[1]

    def _note_machine(self, receiver_id: ReceiverId) -> None:
        with self.shared.read() as (session, now):
            record = session.receivers[receiver_id]
            row = self._row(record, session.parameters.block_bytes, now)
        self.put_machine(row)

    def _note_all_machines(self) -> None:
        with self.shared.read() as (session, now):
            block_bytes = session.parameters.block_bytes
            rows = [self._row(record, block_bytes, now) for record in session.receivers.values()]
        for row in rows:
            known = self.machines.get(row.name)
            # What a machine said itself of its end counts, though the session still hopes.
            if known is None or known.ended_at is None or (row.ended_at and known.state != row.state):
                self.put_machine(row)

    def _end_machines(self, reason: str) -> None:
        """Nothing more becomes of those who were in the middle: history says so, and why."""
        for row in list(self.machines.values()):
            if row.ended_at is None and row.state in UNFINISHED_STATES:
                why = row.error or reason
                ended_at = datetime.now(UTC)
                self.put_machine(
                    dataclasses.replace(row, state=MachineState.FAILED, error=why, ended_at=ended_at)
                )

    def _row(self, record: ReceiverRecord, block_bytes: int, now: float) -> CastMachine:
        row = cast_machine(self.cast_id, record, block_bytes, now, datetime.now(UTC))
        earlier = self.machines.get(row.name)
        if earlier is None:
            return row
        joined_at = earlier.joined_at or row.joined_at
        seconds = row.seconds
        if joined_at is not None:  # in this run of the cast or in an earlier one
            seconds = ((row.ended_at or datetime.now(UTC)) - joined_at).total_seconds()
        return dataclasses.replace(
            row,
            machine_id=row.machine_id or earlier.machine_id,
            joined_at=joined_at,
            seconds=round(seconds, 3),
            rate_bytes_per_s=round(row.bytes_verified / max(seconds, 1e-3)),
        )

    def _count_machines(self) -> None:
        states = self._states
        self.cast = dataclasses.replace(
            self.cast,
            joined_count=states.total() - sum(states[state] for state in NOT_JOINED_STATES),
            complete_count=states[MachineState.COMPLETE],
            failed_count=sum(states[state] for state in UNSUCCESSFUL_STATES),
        )

    def _save_cast(self, *, lasting: bool) -> None:
        method = "casts.save" if lasting else "casts.save_progress"
        self._recorder.put(("cast", self.cast_id, method), method, self.cast)

    def _add_point(self, view: CastView) -> None:
        gathering_at = self.cast.gathering_at
        at_s = 0.0 if gathering_at is None else (datetime.now(UTC) - gathering_at).total_seconds()
        with self.shared.read() as (session, _now):
            parity = session.parity
        self.points.append(timeline_point(at_s, view, parity))
        if len(self.points) > POINTS_MAX:
            del self.points[1::2]
            self._point_every_s *= 2


def idle_cast(cast: Cast, *, local: bool) -> LiveCast:
    """A cast of which only its record is known: planned, ended, or another daemon's."""
    return LiveCast(
        cast=cast,
        local=local,
        rate_bytes_per_s=0.0,
        achieved_bytes_per_s=0.0,
        elapsed_s=cast.seconds,
        eta_s=None,
        pass_index=0,
        pass_progress=0.0,
        bottleneck="",
    )


def machine_of_history(row: CastMachine, room_id: str | None) -> LiveMachine:
    """A machine of which only its line is known."""
    return LiveMachine(
        machine_id=row.machine_id,
        name=row.name,
        room_id=room_id,
        position="",
        address=row.address,
        online=False,
        state=row.state,
        cast_id=row.cast_id,
        progress=row.progress,
        rate_bytes_per_s=0.0,
        loss=row.loss,
        bottleneck="",
        eta_s=None,
        error=row.error,
    )
