"""Live events for subscribers: each snapshot is taken and encoded once, for any number of subscribers.

A topic (the overview, a room, a cast) is read every :data:`TICK_S` while it has subscribers. A subscriber receives a
full snapshot first and then changes. A slow subscriber misses changes and then receives a full snapshot again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import json
import math
import operator
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog

from protocol.errors import DatabaseError
from sender.daemon.health import HealthMonitor
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.record_mapping import idle_cast
from sender.daemon.live_state import LiveState
from sender.daemon.presence import Presence
from sender.refusals import invalid, not_found
from sender.store.records.casts import Cast, CastEvent, TimelinePoint
from sender.store.records.live import LiveCast, LiveMachine
from sender.store.store import Store

TICK_S: Final = 0.4
"""A change is on every screen within a second: a tick, the time to read and encode, and the network."""
TOPICS_MAX: Final = 8
"""Topics of one subscriber: a page shows two or three."""
_QUEUE_MAX: Final = 16
"""Events queued for a slow subscriber: eight seconds of two topics."""
_ENDED_SHOWN: Final = 10
_READ_INTERVAL_S: Final = 2.0

_log = structlog.get_logger(__name__)


class TopicKind(enum.StrEnum):
    """Kinds of topics, which are also the names of their events."""

    OVERVIEW = "overview"
    ROOM = "room"
    CAST = "cast"


class _Topic(Protocol):
    """A source of snapshots."""

    async def refresh(self) -> dict[str, Any] | None:
        """Take a snapshot; return the changes since the last one, None if nothing has changed."""

    def full(self) -> dict[str, Any]:
        """Return the whole last snapshot."""


@dataclasses.dataclass(slots=True)
class _Channel:
    """A topic with subscribers, and its snapshot, encoded on demand."""

    event: str
    topic: _Topic
    encoded: bytes | None = None

    async def refresh(self) -> bytes | None:
        """Take a snapshot; return the changes, encoded, None if nothing has changed."""
        changed = await self.topic.refresh()
        if changed is None:
            return None
        self.encoded = None
        return encode(self.event, changed)

    def full(self) -> bytes:
        """Return the whole last snapshot, encoded."""
        if self.encoded is None:
            self.encoded = encode(self.event, self.topic.full())
        return self.encoded


@dataclasses.dataclass(eq=False, slots=True)
class _Subscriber:
    """A subscriber.

    Attributes:
        incomplete: topics of which it needs a full snapshot next: it is new, or has missed changes.
    """

    topics: tuple[str, ...]
    queue: asyncio.Queue[bytes]
    incomplete: set[str]

    def send(self, name: str, channel: _Channel, changed: bytes | None) -> None:
        """Queue a topic's changes, or its full snapshot."""
        event = channel.full() if name in self.incomplete else changed
        if event is None:
            return
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            while not self.queue.empty():
                self.queue.get_nowait()
            self.incomplete = set(self.topics)
        else:
            self.incomplete.discard(name)


class EventFeed:
    """Live events. It belongs to the event loop."""

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
        self._subscribers: set[_Subscriber] = set()
        self._channels: dict[str, _Channel] = {}
        self._wanted = asyncio.Event()

    @property
    def subscriber_count(self) -> int:
        """Return the number of subscribers."""
        return len(self._subscribers)

    async def run(self) -> None:
        """Refresh topics with subscribers until cancelled; only this task does, so all see the same changes."""
        while True:
            watched = {topic for subscriber in self._subscribers for topic in subscriber.topics}
            for name in self._channels.keys() - watched:
                del self._channels[name]
            started_at = time.monotonic()
            self._wanted.clear()
            for name in sorted(watched):
                await self._refresh(name)
                await asyncio.sleep(0)  # a large room takes milliseconds: let casts run in between
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(started_at + TICK_S - time.monotonic() if watched else None):
                    await self._wanted.wait()

    async def check(self, topics: Collection[str]) -> None:
        """Raise unless all of ``topics`` exist.

        Args:
            topics: ``overview``, ``room:ID``, ``cast:ID``.

        Raises:
            RequestRefusedError: a topic is unknown, or there are too many.
            DatabaseError: the database is unavailable.
        """
        if not 0 < len(topics) <= TOPICS_MAX:
            raise invalid(f"watch 1 to {TOPICS_MAX} topics at a time")
        for name in topics:
            kind, _, key = name.partition(":")
            store = self._store
            match kind:
                case TopicKind.OVERVIEW if not key:
                    continue
                case TopicKind.ROOM if await store.run(store.rooms.get, key) is not None:
                    continue
                case TopicKind.CAST if await self._live_state.find_cast(key) is not None:
                    continue
                case TopicKind.ROOM | TopicKind.CAST:
                    raise not_found(kind, key)
                case _:
                    raise invalid(f"there is no topic {name!r}: watch overview, room:ID or cast:ID")

    def subscribe(self, topics: Collection[str]) -> AsyncIterator[bytes]:
        """Return encoded server-sent events until the caller stops: a full snapshot of each topic, then changes.

        Args:
            topics: checked by :meth:`check`.
        """
        return self._read(_Subscriber(tuple(topics), asyncio.Queue(_QUEUE_MAX), set(topics)))

    # -- inside -----------------------------------------------------------------------------------------------

    async def _read(self, subscriber: _Subscriber) -> AsyncIterator[bytes]:
        self._subscribers.add(subscriber)
        self._wanted.set()
        try:
            while True:
                yield await subscriber.queue.get()
        finally:
            self._subscribers.discard(subscriber)

    async def _refresh(self, name: str) -> None:
        channel = self._channel(name)
        try:
            changed = await channel.refresh()
        except DatabaseError:
            return  # the overview shows it as a problem
        except Exception as error:  # noqa: BLE001  one broken topic must not end the others
            _log.error("live_snapshot_failed", topic=name, exc_info=error)
            return
        for subscriber in self._subscribers:
            if name in subscriber.topics:
                subscriber.send(name, channel, changed)

    def _channel(self, name: str) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            kind, _, key = name.partition(":")
            topic: _Topic
            match kind:
                case TopicKind.ROOM:
                    topic = _RoomTopic(self._live_state, key)
                case TopicKind.CAST:
                    topic = _CastTopic(self._live_state, self._registry, key)
                case _:
                    topic = _Overview(
                        self._store, self._registry, self._presence, self._live_state, self._health
                    )
            channel = self._channels[name] = _Channel(kind, topic)
        return channel


class _Overview:
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
        return {"at": datetime.now(UTC), **self._document}

    async def _read(self) -> None:
        """Read recent casts and the number of machines; keep the last ones while the database is unavailable."""
        self._read_at = time.monotonic()
        store = self._store
        with contextlib.suppress(DatabaseError):
            self._ended, _ = await store.run(store.casts.list, limit=_ENDED_SHOWN, ended=True)
            self._machine_count = await store.run(store.machines.count)


class _RoomTopic:
    """A room's machines."""

    def __init__(self, live_state: LiveState, room_id: str) -> None:
        self._live_state = live_state
        self._room_id = room_id
        self._machines: dict[str, LiveMachine] = {}
        self._started = False

    async def refresh(self) -> dict[str, Any] | None:
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
        machines = [_MACHINE(machine) for machine in self._machines.values()]
        return {"room_id": self._room_id, "full": True, "machines": machines}


class _CastTopic:
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
    """Return the changed machines, None if one is gone (only a full snapshot shows that), and all by key."""
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


def format_time(value: datetime) -> str:
    """Return ISO 8601 in UTC, as everywhere in the API."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def encode(event: str, document: dict[str, Any]) -> bytes:
    """Return a server-sent event (HTML standard, section 9.2.6)."""
    data = json.dumps(document, separators=(",", ":"), default=_encode_other)
    return f"event: {event}\ndata: {data}\n\n".encode()


def _encode_other(value: object) -> str:
    if isinstance(value, datetime):
        return format_time(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")
