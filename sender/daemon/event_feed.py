"""Live events for subscribers: each snapshot is taken and encoded once, for any number of subscribers.

A topic (the overview, a room, a cast) is read every :data:`TICK_S` while it has subscribers. A subscriber receives a
full snapshot first and then changes. A slow subscriber misses changes and then receives a full snapshot again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Collection
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from protocol.errors import DatabaseError
from sender.daemon.event_topics import CastTopic, OverviewTopic, RoomTopic, Topic, TopicKind
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.live_state import LiveState
from sender.refusals import invalid, not_found
from sender.store.store import Store

TICK_S: Final = 0.4
"""A change is on every screen within a second: a tick, the time to read and encode, and the network."""
TOPICS_MAX: Final = 8
"""Topics of one subscriber: a page shows two or three."""
_QUEUE_MAX: Final = 16
"""Events queued for a slow subscriber: eight seconds of two topics."""

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True)
class _Channel:
    """A topic with subscribers, and its snapshot, encoded on demand."""

    event: str
    topic: Topic
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
    """Live events. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        registry: CastRegistry,
        live_state: LiveState,
        make_overview: Callable[[], OverviewTopic],
    ) -> None:
        self._store = store
        self._registry = registry
        self._live_state = live_state
        self._make_overview = make_overview
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
            topic: Topic
            match kind:
                case TopicKind.ROOM:
                    topic = RoomTopic(self._live_state, key)
                case TopicKind.CAST:
                    topic = CastTopic(self._live_state, self._registry, key)
                case _:
                    topic = self._make_overview()
            channel = self._channels[name] = _Channel(kind, topic)
        return channel


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
