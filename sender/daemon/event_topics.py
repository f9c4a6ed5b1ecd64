"""Topics of live events: the overview, a room, a cast. Each takes snapshots and finds the changes between them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import math
import operator
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from protocol.errors import DatabaseError
from sender.daemon.health import HealthMonitor
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.record_mapping import idle_cast
from sender.daemon.live_state import LiveState
from sender.daemon.presence import Presence
from sender.store.records.casts import Cast, CastEvent, TimelinePoint
from sender.store.records.live import LiveCast, LiveMachine
from sender.store.store import Store

_ENDED_SHOWN: Final = 10
_READ_INTERVAL_S: Final = 2.0


class TopicKind(enum.StrEnum):
    """Kinds of topics, which are also the names of their events."""

    OVERVIEW = "overview"
    ROOM = "room"
    CAST = "cast"


class Topic(Protocol):
    """A source of snapshots."""

    async def refresh(self) -> dict[str, Any] | None:
        """Take a snapshot; return the changes since the last one, None if nothing has changed."""

    def full(self) -> dict[str, Any]:
        """Return the whole last snapshot."""


class OverviewTopic:
    """All casts, in brief. It is small and always sent whole."""

    def __init__(
        self,
        store: Store,
        registry: CastRegistry,
        presence: Presence,
        live_state: LiveState,
        health: HealthMonitor,
    ) -> None:
        self._store = store
        self._registry = registry
        self._presence = presence
        self._live_state = live_state
        self._health = health
        self._document: dict[str, Any] = {}
        self._ended: list[Cast] = []
        self._read_at = -math.inf
        self._reading: asyncio.Task[None] | None = None
        self._machine_count = 0

    async def refresh(self) -> dict[str, Any] | None:
        """Read the casts; return the whole overview if it has changed."""
        if math.isinf(self._read_at):
            await self._read()
        elif time.monotonic() - self._read_at > _READ_INTERVAL_S and (
            self._reading is None or self._reading.done()
        ):
            self._reading = asyncio.create_task(self._read(), name="overview")
        live = [self._live_state.live_cast(cast) for cast in self._registry.unfinished.values()]
        shown = {item.cast.cast_id for item in live}
        live += [idle_cast(cast, local=False) for cast in self._ended if cast.cast_id not in shown]
        document = {
            "casts": [dataclasses.asdict(item) for item in live],
            "machines_online": self._presence.online_count,
            "machines_total": self._machine_count,
            "problems": [dataclasses.asdict(problem) for problem in self._health.problems()],
        }
        if document == self._document:
            return None
        self._document = document
        return self.full()

    def full(self) -> dict[str, Any]:
        """Return the whole overview."""
        return {"at": datetime.now(UTC), **self._document}

    async def _read(self) -> None:
        """Read recent casts and the number of machines; keep the last ones while the database is unavailable."""
        self._read_at = time.monotonic()
        store = self._store
        with contextlib.suppress(DatabaseError):
            self._ended, _ = await store.run(store.casts.list, limit=_ENDED_SHOWN, ended=True)
            self._machine_count = await store.run(store.machines.count)


class RoomTopic:
    """A room's machines."""

    def __init__(self, live_state: LiveState, room_id: str) -> None:
        self._live_state = live_state
        self._room_id = room_id
        self._machines: dict[str, LiveMachine] = {}
        self._started = False

    async def refresh(self) -> dict[str, Any] | None:
        """Read the machines; return the changed ones."""
        changed, self._machines = _changed(await self._live_state.machines(self._room_id), self._machines)
        if changed is None or not self._started:
            self._started = True
            return self.full()
        if not changed:
            return None
        return {
            "room_id": self._room_id,
            "full": False,
            "machines": [_MACHINE(machine) for machine in changed],
        }

    def full(self) -> dict[str, Any]:
        """Return all machines."""
        machines = [_MACHINE(machine) for machine in self._machines.values()]
        return {"room_id": self._room_id, "full": True, "machines": machines}


class CastTopic:
    """A cast, its machines, its charts."""

    def __init__(self, live_state: LiveState, registry: CastRegistry, cast_id: str) -> None:
        self._live_state = live_state
        self._registry = registry
        self._cast_id = cast_id
        self._live: LiveCast | None = None
        self._machines: dict[str, LiveMachine] = {}
        self._points: list[TimelinePoint] = []
        self._events: list[CastEvent] = []
        self._final = False

    async def refresh(self) -> dict[str, Any] | None:
        """Read the cast; return its changes."""
        if self._final:
            return None
        cast = await self._live_state.find_cast(self._cast_id)
        if cast is None:
            self._final = True
            return None
        before = self._live, len(self._events), self._points[-1].at_s if self._points else -1.0
        self._live = self._live_state.live_cast(cast)
        changed, self._machines = _changed(await self._live_state.cast_machines(cast), self._machines)
        self._points, self._events = await self._live_state.timeline(self._cast_id)
        # A cast that has ended elsewhere doesn't change any more.
        self._final = cast.phase.ended and self._registry.job(self._cast_id) is None
        if before[0] is None or changed is None or len(self._events) < before[1]:
            return self.full()
        points = [point for point in self._points if point.at_s > before[2]]
        events = self._events[before[1] :]
        if not (changed or points or events or self._live != before[0]):
            return None
        return self._document(changed, points, events, full=False)

    def full(self) -> dict[str, Any]:
        """Return the whole cast."""
        return self._document(list(self._machines.values()), self._points, self._events, full=True)

    def _document(
        self,
        machines: Sequence[LiveMachine],
        points: Sequence[TimelinePoint],
        events: Sequence[CastEvent],
        *,
        full: bool,
    ) -> dict[str, Any]:
        return {
            "cast_id": self._cast_id,
            "full": full,
            "live": None if self._live is None else dataclasses.asdict(self._live),
            "machines": [_MACHINE(machine) for machine in machines],
            "points": [_POINT(point) for point in points],
            "events": [_EVENT(event) for event in events],
        }


def _changed(
    machines: Sequence[LiveMachine], last: dict[str, LiveMachine]
) -> tuple[list[LiveMachine] | None, dict[str, LiveMachine]]:
    """Return the changed machines, or None if one was removed (only a full snapshot shows that), and all by key."""
    now = {machine.machine_id or machine.name: machine for machine in machines}
    if last.keys() - now.keys():
        return None, now
    return [machine for key, machine in now.items() if last.get(key) != machine], now


def _plain_as(record_class: type) -> Callable[[Any], dict[str, Any]]:
    """Return :func:`dataclasses.asdict` for a flat record, at a tenth of its cost: a room has hundreds of them."""
    names = tuple(field.name for field in dataclasses.fields(record_class))
    values = operator.attrgetter(*names)
    return lambda record: dict(zip(names, values(record), strict=True))


_MACHINE: Final = _plain_as(LiveMachine)
_POINT: Final = _plain_as(TimelinePoint)
_EVENT: Final = _plain_as(CastEvent)
