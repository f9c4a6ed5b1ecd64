"""What goes on, for everybody who watches: each picture is made and encoded once, however many look at it.

A topic (the overview, a room, a cast) is drawn every :data:`TICK_S` while somebody watches it. Who watches gets all of
it first and then what has changed. A reader that is slow isn't waited for: it misses changes and gets all of it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import operator
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from protocol.errors import DatabaseError
from sender.daemon.cast_job import idle_cast
from sender.refusals import invalid, not_found
from sender.store.records.casts import Cast, CastEvent, TimelinePoint
from sender.store.records.live import LiveCast, LiveMachine

if TYPE_CHECKING:
    from sender.daemon.context import Services

TICK_S: Final = 0.4
"""A change is on every screen within a second: a tick, the time to draw and encode, and some for the network."""
TOPICS_MAX: Final = 8
"""Topics of one watcher: a page shows two or three."""
_QUEUE_MAX: Final = 16
"""Pictures that wait for a slow reader: eight seconds of two topics."""
_ENDED_SHOWN: Final = 10
_LOOK_S: Final = 2.0

_log = structlog.get_logger(__name__)


class _Topic(Protocol):
    """A picture and what it is made of."""

    async def draw(self) -> dict[str, Any] | None:
        """Look again; what has changed since the last look, None if nothing has."""

    def all(self) -> dict[str, Any]:
        """All of it, as it was at the last look."""


@dataclasses.dataclass(slots=True)
class _Channel:
    """A topic that is watched, and its picture, encoded when somebody needs it."""

    event: str
    topic: _Topic
    encoded: bytes | None = None

    async def draw(self) -> bytes | None:
        """What has changed, encoded; None if nothing has."""
        changed = await self.topic.draw()
        if changed is None:
            return None
        self.encoded = None
        return encode(self.event, changed)

    def full(self) -> bytes:
        """All of it as it was drawn last, encoded."""
        if self.encoded is None:
            self.encoded = encode(self.event, self.topic.all())
        return self.encoded


@dataclasses.dataclass(eq=False, slots=True)
class _Subscriber:
    """One who watches.

    Attributes:
        lacking: topics of which it hasn't got all, or has missed something: it gets all of them next.
    """

    topics: tuple[str, ...]
    queue: asyncio.Queue[bytes]
    lacking: set[str]

    def give(self, name: str, channel: _Channel, changed: bytes | None) -> None:
        """What a topic's drawing is to it."""
        event = channel.full() if name in self.lacking else changed
        if event is None:
            return
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            while not self.queue.empty():
                self.queue.get_nowait()
            self.lacking = set(self.topics)
        else:
            self.lacking.discard(name)


class LiveFeed:
    """See the module's docstring. It belongs to the event loop."""

    def __init__(self, services: Services) -> None:
        """Watch ``services``."""
        self._services = services
        self._subscribers: set[_Subscriber] = set()
        self._channels: dict[str, _Channel] = {}
        self._wanted = asyncio.Event()

    @property
    def subscriber_count(self) -> int:
        """Watchers now."""
        return len(self._subscribers)

    async def run(self) -> None:
        """Draw what is watched until cancelled; nobody else draws, so that everybody sees the same changes."""
        while True:
            watched = {topic for subscriber in self._subscribers for topic in subscriber.topics}
            for name in self._channels.keys() - watched:
                del self._channels[name]
            began_at = time.monotonic()
            self._wanted.clear()
            for name in sorted(watched):
                await self._draw(name)
                await asyncio.sleep(0)  # a large room takes milliseconds: casts have their turn in between
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(began_at + TICK_S - time.monotonic() if watched else None):
                    await self._wanted.wait()

    async def check(self, topics: Collection[str]) -> None:
        """Raise unless all of ``topics`` can be watched.

        Args:
            topics: ``overview``, ``room:ID``, ``cast:ID``.

        Raises:
            RequestRefusedError: there is no such topic, or there are too many.
            DatabaseError: nobody can say whether there is.
        """
        if not 0 < len(topics) <= TOPICS_MAX:
            raise invalid(f"watch 1 to {TOPICS_MAX} topics at a time")
        for name in topics:
            kind, _, key = name.partition(":")
            store = self._services.store
            match kind:
                case "overview" if not key:
                    continue
                case "room" if await store.run(store.rooms.get, key) is not None:
                    continue
                case "cast" if await self._services.find_cast(key) is not None:
                    continue
                case "room" | "cast":
                    raise not_found(kind, key)
                case _:
                    raise invalid(f"there is no topic {name!r}: watch overview, room:ID or cast:ID")

    def subscribe(self, topics: Collection[str]) -> AsyncIterator[bytes]:
        """Encoded server-sent events until the caller stops reading: all of each topic, then what changes.

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

    async def _draw(self, name: str) -> None:
        channel = self._channel(name)
        try:
            changed = await channel.draw()
        except DatabaseError:
            return  # who watches sees that in the overview's problems
        except Exception as error:  # noqa: BLE001  one picture that can't be drawn must not end the others
            _log.error("live_picture_failed", topic=name, exc_info=error)
            return
        for subscriber in self._subscribers:
            if name in subscriber.topics:
                subscriber.give(name, channel, changed)

    def _channel(self, name: str) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            kind, _, key = name.partition(":")
            topic: _Topic
            match kind:
                case "room":
                    topic = _RoomTopic(self._services, key)
                case "cast":
                    topic = _CastTopic(self._services, key)
                case _:
                    topic = _Overview(self._services)
            channel = self._channels[name] = _Channel(kind, topic)
        return channel


class _Overview:
    """All that goes on, in brief; it is small, and so it is always sent whole."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._document: dict[str, Any] = {}
        self._ended: list[Cast] = []
        self._looked_at = -math.inf
        self._looking: asyncio.Task[None] | None = None
        self._machine_count = 0

    async def draw(self) -> dict[str, Any] | None:
        services, supervisor = self._services, self._services.supervisor
        if math.isinf(self._looked_at):
            await self._look_up()
        elif time.monotonic() - self._looked_at > _LOOK_S and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look_up(), name="overview")
        live = [services.rooms_now.live(cast) for cast in supervisor.unfinished.values()]
        shown = {item.cast.cast_id for item in live}
        live += [idle_cast(cast, local=False) for cast in self._ended if cast.cast_id not in shown]
        document = {
            "casts": [dataclasses.asdict(item) for item in live],
            "machines_online": services.presence.online_count,
            "machines_total": self._machine_count,
            "problems": [dataclasses.asdict(problem) for problem in services.problems()],
        }
        if document == self._document:
            return None
        self._document = document
        return self.all()

    def all(self) -> dict[str, Any]:
        return {"at": datetime.now(UTC), **self._document}

    async def _look_up(self) -> None:
        """What only the database knows, every few seconds; while it is away, what was known."""
        self._looked_at = time.monotonic()
        store = self._services.store
        with contextlib.suppress(DatabaseError):
            self._ended, _ = await store.run(store.casts.list, limit=_ENDED_SHOWN, ended=True)
            self._machine_count = await store.run(store.machines.count)


class _RoomTopic:
    """A room's machines."""

    def __init__(self, services: Services, room_id: str) -> None:
        self._services = services
        self._room_id = room_id
        self._machines: dict[str, LiveMachine] = {}
        self._began = False

    async def draw(self) -> dict[str, Any] | None:
        changed, self._machines = _changed(
            await self._services.rooms_now.machines(self._room_id), self._machines
        )
        if changed is None or not self._began:
            self._began = True
            return self.all()
        if not changed:
            return None
        return {
            "room_id": self._room_id,
            "full": False,
            "machines": [_MACHINE(machine) for machine in changed],
        }

    def all(self) -> dict[str, Any]:
        machines = [_MACHINE(machine) for machine in self._machines.values()]
        return {"room_id": self._room_id, "full": True, "machines": machines}


class _CastTopic:
    """A cast, its machines, its charts."""

    def __init__(self, services: Services, cast_id: str) -> None:
        self._services = services
        self._cast_id = cast_id
        self._live: LiveCast | None = None
        self._machines: dict[str, LiveMachine] = {}
        self._points: list[TimelinePoint] = []
        self._events: list[CastEvent] = []
        self._at_rest = False

    async def draw(self) -> dict[str, Any] | None:
        if self._at_rest:
            return None
        cast = await self._services.find_cast(self._cast_id)
        if cast is None:
            self._at_rest = True
            return None
        before = self._live, len(self._events), self._points[-1].at_s if self._points else -1.0
        self._live = self._services.rooms_now.live(cast)
        changed, self._machines = _changed(await self._services.rooms_now.cast_machines(cast), self._machines)
        self._points, self._events = await self._services.timeline(self._cast_id)
        # A cast that has ended, and isn't this daemon's, won't change any more.
        self._at_rest = cast.phase.ended and self._services.supervisor.live_run(self._cast_id) is None
        if before[0] is None or changed is None or len(self._events) < before[1]:
            return self.all()
        points = [point for point in self._points if point.at_s > before[2]]
        events = self._events[before[1] :]
        if not (changed or points or events or self._live != before[0]):
            return None
        return self._document(changed, points, events, full=False)

    def all(self) -> dict[str, Any]:
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
    """Those that aren't as they were; None if one is gone, which only all of them can tell."""
    now = {machine.machine_id or machine.name: machine for machine in machines}
    if last.keys() - now.keys():
        return None, now
    return [machine for key, machine in now.items() if last.get(key) != machine], now


def _plain_as(record_class: type) -> Callable[[Any], dict[str, Any]]:
    """:func:`dataclasses.asdict` for a flat record, at a tenth of its cost: a room has hundreds of them."""
    names = tuple(field.name for field in dataclasses.fields(record_class))
    values = operator.attrgetter(*names)
    return lambda record: dict(zip(names, values(record), strict=True))


_MACHINE: Final = _plain_as(LiveMachine)
_POINT: Final = _plain_as(TimelinePoint)
_EVENT: Final = _plain_as(CastEvent)


def moment(value: datetime) -> str:
    """ISO 8601 in UTC, as everywhere in the API."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def encode(event: str, document: dict[str, Any]) -> bytes:
    """One server-sent event (HTML standard, section 9.2.6)."""
    data = json.dumps(document, separators=(",", ":"), default=_encode_other)
    return f"event: {event}\ndata: {data}\n\n".encode()


def _encode_other(value: object) -> str:
    if isinstance(value, datetime):
        return moment(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")
