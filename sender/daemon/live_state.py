"""Rooms and casts as they are now: what the database knows, who is there, and what the casts that run say."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from protocol.errors import DatabaseError
from sender.daemon.cast_job import idle_cast, machine_of_history
from sender.daemon.presence import ONLINE_S
from sender.store.records.casts import Cast, CastMachine
from sender.store.records.live import LiveCast, LiveMachine
from sender.store.records.machine_states import MachineState
from sender.store.records.machines import Machine

if TYPE_CHECKING:
    from sender.daemon.context import Services

FRESH_S: Final = 10.0
"""How old may be what the database said of a room; what this daemon itself changes is seen at once."""
RESULT_SHOWN_S: Final = 3600.0
"""For this long after its cast a machine shows how that went; then, whether it is there."""
_ROOMS_MAX: Final = 64
"""Rooms that are kept for those who watch."""


@dataclasses.dataclass(slots=True)
class _RoomBook:
    machines: list[Machine]
    latest: dict[str, CastMachine]
    read_at: float


class RoomsNow:
    """Answers how rooms and casts are. It belongs to the event loop."""

    def __init__(self, services: Services) -> None:
        """Look at ``services``."""
        self._services = services
        self._books: dict[str, _RoomBook] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._forgotten_count = 0

    def forget(self, room_id: str | None = None) -> None:
        """A room, or all, changed in the database."""
        self._forgotten_count += 1
        if room_id is None:
            self._books.clear()
        else:
            self._books.pop(room_id, None)

    async def machines(self, room_id: str) -> list[LiveMachine]:
        """A room's machines, by name.

        While the database is away it is what was known before.

        Raises:
            DatabaseError: it's away, and this room was never looked at.
        """
        book = await self._book(room_id)
        here = {}
        # Of several casts that have ended, the newest is how a machine is now.
        for run in reversed(self._services.supervisor.casting()):
            run.refresh()
            for live in run.live_machines():
                if live.machine_id is not None and (not run.cast.phase.ended or live.machine_id not in here):
                    here[live.machine_id] = live
        return [self._machine_now(machine, here.get(machine.machine_id), book) for machine in book.machines]

    def live(self, cast: Cast) -> LiveCast:
        """A cast, with what this daemon knows of it if it runs here."""
        live = self._services.supervisor.live_run(cast.cast_id)
        return live.live_cast() if live is not None else idle_cast(cast, local=False)

    async def cast_machines(self, cast: Cast) -> list[LiveMachine]:
        """A cast's machines.

        Raises:
            DatabaseError: it isn't this daemon's, and the database is away.
        """
        live = self._services.supervisor.live_run(cast.cast_id)
        if live is None or live.view is None:
            store = self._services.store
            rows = await store.run(store.casts.machines, cast.cast_id)
            machines = [machine_of_history(row, cast.plan.room_id) for row in rows]
        else:
            live.refresh()
            machines = live.live_machines()
        presence = self._services.presence
        return [
            dataclasses.replace(machine, online=True)
            if machine.machine_id is not None and presence.of(machine.machine_id) is not None
            else machine
            for machine in machines
        ]

    async def _book(self, room_id: str) -> _RoomBook:
        """What the database says of a room. What is known but old is used, and read anew meanwhile: a picture doesn't
        wait for the database.
        """
        book = self._books.get(room_id)
        if book is None:
            return await self._read(room_id)
        if time.monotonic() - book.read_at > FRESH_S and room_id not in self._reading:
            task = asyncio.create_task(self._read_again(room_id), name=f"room {room_id}")
            self._reading[room_id] = task
            task.add_done_callback(lambda _task: self._reading.pop(room_id, None))
        return book

    async def _read_again(self, room_id: str) -> None:
        with contextlib.suppress(DatabaseError):  # the operator is told by the store's own problem
            await self._read(room_id)

    async def _read(self, room_id: str) -> _RoomBook:
        store, forgotten = self._services.store, self._forgotten_count
        machines = await store.run(store.machines.of_room, room_id)
        latest = await store.run(store.casts.latest_of_machines, [machine.machine_id for machine in machines])
        book = _RoomBook(sorted(machines, key=lambda machine: machine.name), latest, time.monotonic())
        if forgotten == self._forgotten_count:
            if len(self._books) >= _ROOMS_MAX:
                self._books.clear()
            self._books[room_id] = book
        return book

    def _machine_now(self, machine: Machine, live: LiveMachine | None, book: _RoomBook) -> LiveMachine:
        online = self._services.presence.of(machine.machine_id) is not None or _is_recent(machine)
        row = book.latest.get(machine.machine_id)
        if live is None and row is not None and self._is_shown(row):
            live = machine_of_history(row, machine.room_id)
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
        return dataclasses.replace(
            live,
            name=machine.name,
            room_id=machine.room_id,
            position=machine.position,
            address=live.address or machine.address,
            online=online or live.online,
        )

    def _is_shown(self, row: CastMachine) -> bool:
        """Whether a machine's last line says more than whether it is there."""
        if row.cast_id in self._services.supervisor.unfinished:
            return True
        ended_at = row.ended_at
        return ended_at is not None and (datetime.now(UTC) - ended_at).total_seconds() < RESULT_SHOWN_S


def _is_recent(machine: Machine) -> bool:
    """Whether it has checked in with another daemon lately, as the database has it."""
    if machine.last_seen_at is None:
        return False
    return (datetime.now(UTC) - machine.last_seen_at).total_seconds() < ONLINE_S
