"""Rooms and casts as they are now: database rows, present machines and running casts combined."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from datetime import UTC, datetime
from typing import Final

from protocol.errors import DatabaseError
from sender.daemon.boots.booting_machines import BootingMachines
from sender.daemon.captures.capture_desk import CaptureDesk
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.record_mapping import ended_machine, idle_cast
from sender.daemon.presence import ONLINE_S, Presence
from sender.daemon.waking.machine_waker import MachineWaker
from sender.labels import WAKE_REASONS
from sender.store.records.captures import Capture, CaptureState
from sender.store.records.casts import Cast, CastEvent, CastMachine, TimelinePoint
from sender.store.records.live import LiveCast, LiveMachine
from sender.store.records.machine_states import MachineState
from sender.store.records.machines import Machine
from sender.store.records.wakes import WakeState
from sender.store.store import Store

FRESH_S: Final = 10.0
"""Age at which the database rows of a room are read again; changes by this daemon are seen at once."""
RESULT_SHOWN_S: Final = 3600.0
"""Time for which a machine shows the result of its cast; then it shows whether it is online."""
_ROOMS_MAX: Final = 64
"""Rooms kept in memory for subscribers."""


@dataclasses.dataclass(slots=True)
class _RoomRows:
    machines: list[Machine]
    latest: dict[str, CastMachine]
    read_at: float


class LiveState:
    """The current state of rooms and casts. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        registry: CastRegistry,
        presence: Presence,
        booting: BootingMachines,
        waker: MachineWaker,
        captures: CaptureDesk,
    ) -> None:
        self._store = store
        self._booting = booting
        self._registry = registry
        self._presence = presence
        self._waker = waker
        self._captures = captures
        self._rooms: dict[str, _RoomRows] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._forgotten_count = 0

    def forget(self, room_id: str | None = None) -> None:
        """Read a room again, or all rooms: they changed in the database."""
        self._forgotten_count += 1
        if room_id is None:
            self._rooms.clear()
        else:
            self._rooms.pop(room_id, None)

    async def machines(self, room_id: str) -> list[LiveMachine]:
        """Return a room's machines, by name.

        While the database is unavailable they are as of the last read.

        Raises:
            DatabaseError: the database is unavailable, and this room was never read.
        """
        rows = await self._rows(room_id)
        here: dict[str, LiveMachine] = {}
        # Of several ended casts, the latest shows a machine's current state.
        for job in reversed(self._registry.jobs_with_session()):
            job.refresh()
            for live in job.snapshot.live_machines():
                if live.machine_id is not None and (not job.cast.phase.ended or live.machine_id not in here):
                    here[live.machine_id] = live
        return [self._machine_now(machine, here.get(machine.machine_id), rows) for machine in rows.machines]

    async def find_cast(self, cast_id: str) -> Cast | None:
        """Return a cast, or None. One that runs here is found without the database."""
        job = self._registry.job(cast_id)
        return job.cast if job is not None else await self._store.run(self._store.casts.get, cast_id)

    def live_cast(self, cast: Cast) -> LiveCast:
        """Return a cast with its live figures, if it runs here."""
        job = self._registry.job(cast.cast_id)
        return job.snapshot.live_cast() if job is not None else idle_cast(cast, local=False)

    async def timeline(self, cast_id: str) -> tuple[list[TimelinePoint], list[CastEvent]]:
        """Return a cast's charts and events."""
        job = self._registry.job(cast_id)
        if job is not None:
            return list(job.timeline.points), list(job.timeline.events)
        return (
            await self._store.run(self._store.casts.timeline, cast_id),
            await self._store.run(self._store.casts.events, cast_id),
        )

    async def cast_machines(self, cast: Cast) -> list[LiveMachine]:
        """Return a cast's machines.

        Raises:
            DatabaseError: the cast isn't this daemon's, and the database is unavailable.
        """
        job = self._registry.job(cast.cast_id)
        if job is None or job.snapshot.view is None:
            store = self._store
            rows = await store.run(store.casts.machines, cast.cast_id)
            machines = [ended_machine(row, cast.plan.room_id) for row in rows]
        else:
            job.refresh()
            machines = job.snapshot.live_machines()
        presence = self._presence
        return [
            dataclasses.replace(machine, online=True)
            if machine.machine_id is not None and presence.of(machine.machine_id) is not None
            else machine
            for machine in machines
        ]

    async def _rows(self, room_id: str) -> _RoomRows:
        """Return the database rows of a room. Old rows are returned at once and read again in the background."""
        rows = self._rooms.get(room_id)
        if rows is None:
            return await self._read(room_id)
        if time.monotonic() - rows.read_at > FRESH_S and room_id not in self._reading:
            task = asyncio.create_task(self._read_again(room_id), name=f"room {room_id}")
            self._reading[room_id] = task
            task.add_done_callback(lambda _task: self._reading.pop(room_id, None))
        return rows

    async def _read_again(self, room_id: str) -> None:
        with contextlib.suppress(DatabaseError):  # the store shows that as a problem
            await self._read(room_id)

    async def _read(self, room_id: str) -> _RoomRows:
        store, forgotten = self._store, self._forgotten_count
        machines = await store.run(store.machines.of_room, room_id)
        latest = await store.run(store.casts.latest_of_machines, [machine.machine_id for machine in machines])
        rows = _RoomRows(sorted(machines, key=lambda machine: machine.name), latest, time.monotonic())
        if forgotten == self._forgotten_count:
            if len(self._rooms) >= _ROOMS_MAX:
                self._rooms.clear()
            self._rooms[room_id] = rows
        return rows

    def _machine_now(self, machine: Machine, live: LiveMachine | None, rows: _RoomRows) -> LiveMachine:
        online = self._presence.of(machine.machine_id) is not None or _is_recent(machine)
        row = rows.latest.get(machine.machine_id)
        if live is None and row is not None and self._is_shown(row):
            live = ended_machine(row, machine.room_id)
        if live is None:
            live = LiveMachine(
                machine_id=machine.machine_id,
                name=machine.name,
                room_id=machine.room_id,
                position=machine.position,
                address=machine.address,
                online=online,
                state=MachineState.IDLE if online else MachineState.OFFLINE,
                cast_id=row.cast_id if row is not None else None,
                progress=0.0,
                rate_bytes_per_s=0.0,
                loss=0.0,
                bottleneck="",
                eta_s=None,
                error="",
            )
        capture = self._captures.upload_of(machine.machine_id)
        if capture is not None:
            # The agent may be too busy with its disk to check in, but its uploads show that it is there.
            live, online = _while_captured(live, capture), True
        elif not (online or live.online):
            live = self._while_off(machine, live)
        return dataclasses.replace(
            live,
            name=machine.name,
            room_id=machine.room_id,
            position=machine.position,
            address=live.address or machine.address,
            online=online or live.online,
        )

    def _while_off(self, machine: Machine, live: LiveMachine) -> LiveMachine:
        """Return the state of a machine that is off: it may be booting or waking, or have failed to wake."""
        if self._booting.includes(machine.machine_id):
            return dataclasses.replace(live, state=MachineState.BOOTING, progress=0.0, error="")
        if self._waker.is_waking(machine.machine_id):
            return dataclasses.replace(live, state=MachineState.WAKING, progress=0.0, error="")
        if live.state is MachineState.OFFLINE and self._waker.silent_since(machine.machine_id) is not None:
            return dataclasses.replace(live, error=WAKE_REASONS[WakeState.SILENT])
        return live

    def _is_shown(self, row: CastMachine) -> bool:
        """Return whether a machine's last result is shown rather than whether it is online."""
        if row.cast_id in self._registry.unfinished:
            return True
        ended_at = row.ended_at
        return ended_at is not None and (datetime.now(UTC) - ended_at).total_seconds() < RESULT_SHOWN_S


def _while_captured(live: LiveMachine, capture: Capture) -> LiveMachine:
    """Return the state of a machine whose disk is captured; the proof is the second half of the progress."""
    share = capture.done_bytes / capture.raw_bytes if capture.raw_bytes else 0.0
    return dataclasses.replace(
        live,
        state=MachineState.CAPTURING,
        progress=(share + (capture.state is CaptureState.PROVING)) / 2,
        rate_bytes_per_s=float(capture.rate_bytes_per_s),
        loss=0.0,
        bottleneck="",
        eta_s=None if capture.state is CaptureState.UPLOADING else capture.eta_s,
        error="",
    )


def _is_recent(machine: Machine) -> bool:
    """Return whether the machine has checked in recently, with any daemon, as of its database row."""
    if machine.last_seen_at is None:
        return False
    return (datetime.now(UTC) - machine.last_seen_at).total_seconds() < ONLINE_S
