"""One run of a leased cast: fetch its image, open its session, run it, end it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import structlog

from protocol.errors import DatabaseError, DatabaseUnavailableError, ImageChangedError
from sender.actors import Actor
from sender.blocking_calls import start_blocking_call
from sender.cast.cast_run import CastResult
from sender.daemon.jobs.cast_job import CastJob, EarlierRuns
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.cast_verdict import absent_machine, assigned_machine, verdict
from sender.daemon.jobs.job_timeline import JobEvent
from sender.daemon.jobs.session_opener import SessionOpener
from sender.daemon.patching.patch_maker import PatchMaker
from sender.daemon.ticket_office import TicketOffice
from sender.daemon.waking.machine_waker import MachineWaker
from sender.daemon.waking.wake_run import WavePace
from sender.imaging.image_file import ImageFile
from sender.imaging.image_signature import ImageSignature
from sender.labels import WAKE_REASONS
from sender.library.library import Library
from sender.refusals import RequestRefusedError
from sender.store.records.casts import Cast, CastMachine, CastPhase
from sender.store.records.images import ImageState
from sender.store.records.machine_states import CONNECTED_STATES, FINAL_STATES, MachineState
from sender.store.records.machines import Room
from sender.store.records.wakes import ASLEEP_STATES, AWAKE_STATES, Wake
from sender.store.store import Store

_RETRY_S: Final = 2.0
_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


class CastExecutor:
    """The executor of leased casts, each in a task of its own. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        library: Library,
        registry: CastRegistry,
        sessions: SessionOpener,
        tickets: TicketOffice,
        waker: MachineWaker,
        patches: PatchMaker,
        make_job: Callable[[Cast, EarlierRuns], CastJob],
    ) -> None:
        self._store = store
        self._library = library
        self._registry = registry
        self._sessions = sessions
        self._tickets = tickets
        self._waker = waker
        self._patches = patches
        self._make_job = make_job

    def add_job(self, cast: Cast, earlier: EarlierRuns | None = None) -> CastJob:
        """Return a new job of ``cast``, which is shown from now on."""
        job = self._make_job(cast, earlier or EarlierRuns())
        self._registry.jobs[cast.cast_id] = job
        return job

    async def run(self, cast: Cast) -> None:
        """Run a leased cast until it ends or is left to another daemon. The caller retires its job.

        Raises:
            DiskcastError: it can't run; its machines haven't received anything.
        """
        store = self._store
        rows = await _retry_until_available(lambda: store.run(store.casts.machines, cast.cast_id))
        points = await _retry_until_available(lambda: store.run(store.casts.timeline, cast.cast_id))
        events = await _retry_until_available(lambda: store.run(store.casts.events, cast.cast_id))
        room = await self._room(cast)
        job = self.add_job(cast, EarlierRuns(rows, points, events))
        job.task = asyncio.current_task()
        job.targets = await _retry_until_available(lambda: self._target_names(cast))
        if cast.run_count > 1:
            job.timeline.add_event(
                JobEvent.TAKEN_OVER, f"continues with daemon {job.owner.name}, run {cast.run_count}"
            )
        if _nobody_left(job):
            _end(job, reason="")
            return
        known = self._library.get(cast.plan.image_id)
        if known is not None and known.state in (ImageState.REMOTE, ImageState.FETCHING):
            job.timeline.add_event(
                JobEvent.IMAGE_AWAITED, f"the image is fetched from {known.location} first"
            )
            self._registry.request_poll()
        async with await self._library.open(cast.plan.image_id, cast.cast_id) as opened:
            image = await start_blocking_call(lambda: ImageFile.open(opened.path), "open image")
            with image:
                if image.manifest.image_id.hex() != cast.plan.image_id:
                    raise ImageChangedError(
                        f"{opened.path} holds another image than the one that was chosen: plan the cast again, or put "
                        "the old file back"
                    )
                await self._patch_machines(job, image)
                waking_s = await self._wake(job, room)
                result = await self._run_session(job, image, opened.path, room, waking_s)
                while job.renewing and not _nobody_left(job):
                    job = self._renewed(job)
                    result = await self._run_session(job, image, opened.path, room)
        if job.renewing:
            _end(job, reason="")
        elif result.abandoned:
            return
        elif job.cancel_reason is not None:
            job.end(CastPhase.CANCELLED, job.cancel_reason)
        else:
            _end(job, reason=result.summary.reason)

    async def _patch_machines(self, job: CastJob, image: ImageFile) -> None:
        """Build the patches of the cast's machines; those without a valid one fail here, before the first write."""
        signature = self._library.best_signature(job.cast.plan.image_id, ImageSignature.of(image.header))
        patches = await _retry_until_available(
            lambda: self._patches.prepare(job.cast.plan, list(job.targets), image.manifest, signature)
        )
        job.patches = patches
        for machine_id, problem in ({} if patches is None else patches.problems()).items():
            row = job.records.machine_of(machine_id)
            if row is not None and row.state in FINAL_STATES:
                continue
            row = row or assigned_machine(job.cast_id, machine_id, job.targets[machine_id])
            now = datetime.now(UTC)
            job.fail_unpatched(
                dataclasses.replace(row, state=MachineState.FAILED, error=problem, ended_at=now)
            )

    async def _wake(self, job: CastJob, room: Room | None) -> float:
        """Wake the machines of a new cast if its plan says so; return the time until the last of them is called."""
        if not job.cast.plan.wake or job.cast.run_count > 1:
            return 0.0
        store, timeline = self._store, job.timeline
        machines = await _retry_until_available(lambda: store.run(store.machines.get_many, list(job.targets)))

        def note_end(wake: Wake) -> None:
            for machine in wake.machines:
                if machine.state in ASLEEP_STATES:
                    text = f"{machine.name} wasn't woken: {WAKE_REASONS[machine.state]}"
                    timeline.add_event(JobEvent.MACHINE_NOT_AWAKE, text, machine.name)
            awake_count = len(wake.names(AWAKE_STATES))
            timeline.add_event(
                JobEvent.WAKE_ENDED, f"{awake_count} of {len(wake.machines)} machines are awake"
            )

        try:
            wake = await self._waker.wake(
                machines, Actor(job.cast.created_by), room=room, cast_id=job.cast_id, on_end=note_end
            )
        except (RequestRefusedError, DatabaseError) as error:
            # The cast takes the machines that are on.
            timeline.add_event(JobEvent.WAKE_ENDED, f"the machines can't be woken: {error}")
            return 0.0
        waves = max(machine.wave for machine in wake.machines)
        text = f"waking {len(machines)} machines, {wake.wave_size} at a time"
        timeline.add_event(JobEvent.WAKE_STARTED, text + (f", in {waves} waves" if waves > 1 else ""))
        return WavePace(wake.wave_size, wake.pause_s).duration_s(len(machines))

    async def _run_session(
        self, job: CastJob, image: ImageFile, path: Path, room: Room | None, waking_s: float = 0.0
    ) -> CastResult:
        """Run one session of the cast, with keys of its own."""
        rows = list(job.records.machines.values())
        still_required = job.cast.required_count - sum(row.state in FINAL_STATES for row in rows)
        expected = len(_expected_back(rows)) if job.cast.casting_at is not None else None
        policy = self._sessions.policy(
            job.cast, still_required=still_required, expected_back=expected, waking_s=waking_s
        )
        join_key = await _retry_until_available(lambda: self._tickets.join_key(job.cast_id))
        signature = self._library.best_signature(job.cast.plan.image_id, ImageSignature.of(image.header))
        with self._sessions.open(job, image, path, signature, policy, room, join_key) as run:
            job.attach(run)
            self._registry.request_poll()
            return await run.run()

    def _renewed(self, job: CastJob) -> CastJob:
        """Return a job that continues ``job`` with a new session."""
        earlier = EarlierRuns(
            list(job.records.machines.values()), list(job.timeline.points), list(job.timeline.events)
        )
        renewed = self.add_job(job.cast, earlier)
        renewed.task, renewed.targets, renewed.patches = job.task, job.targets, job.patches
        return renewed

    async def _room(self, cast: Cast) -> Room | None:
        store, room_id = self._store, cast.plan.room_id
        if room_id is None:
            return None
        return await _retry_until_available(lambda: store.run(store.rooms.get, room_id))

    async def _target_names(self, cast: Cast) -> dict[str, str]:
        """Return the names of the cast's planned machines, by id."""
        store = self._store
        if cast.plan.room_id is not None:
            machines = await store.run(store.machines.of_room, cast.plan.room_id)
            wanted = set(cast.plan.machine_ids) or {machine.machine_id for machine in machines}
            return {machine.machine_id: machine.name for machine in machines if machine.machine_id in wanted}
        names = {}
        for machine_id in cast.plan.machine_ids:
            machine = await store.run(store.machines.get, machine_id)
            if machine is not None:
                names[machine_id] = machine.name
        return names


async def _retry_until_available(query: Callable[[], Awaitable[_Result]]) -> _Result:
    """Return the result of ``query``, retried until the database is available.

    The cast is leased by this daemon, and its lease doesn't expire while the database is unavailable.
    """
    while True:
        try:
            return await query()
        except DatabaseUnavailableError as error:
            _log.warning("database_awaited", error=str(error))
            await asyncio.sleep(_RETRY_S)


def _nobody_left(job: CastJob) -> bool:
    """Return whether the data has started and no machine of it can come back."""
    rows = list(job.records.machines.values())
    return job.cast.casting_at is not None and bool(rows) and not _expected_back(rows)


def _expected_back(rows: list[CastMachine]) -> list[CastMachine]:
    """Return the machines of an earlier run that must rejoin: the unfinished ones or else the lost ones."""
    unfinished = [row for row in rows if row.state in CONNECTED_STATES]
    return unfinished or [row for row in rows if row.state is MachineState.LOST]


def _end(job: CastJob, *, reason: str) -> None:
    """End a cast: record machines that never joined or didn't come back, and the verdict."""
    known = job.records.machines.values()
    here = {row.machine_id for row in known if row.state is not MachineState.ASSIGNED}
    assigned = {
        row.machine_id: row.name for row in known if row.machine_id and row.state is MachineState.ASSIGNED
    }
    for machine_id, name in (dict(job.targets) | assigned).items():
        if machine_id not in here:
            job.put_machine(absent_machine(job.cast_id, machine_id, name))
    for row in list(known):
        if row.state in CONNECTED_STATES:
            error = row.error or "it didn't come back after the sender was restarted"
            job.put_machine(
                dataclasses.replace(row, state=MachineState.LOST, error=error, ended_at=datetime.now(UTC))
            )
    job.end(*verdict(job.cast, job.records.machines.values(), reason))
