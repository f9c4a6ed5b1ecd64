"""Lease casts for this daemon: those that are due, and those whose daemon has died."""

from __future__ import annotations

import time
from collections.abc import Collection, Container
from datetime import UTC, datetime

import structlog

from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.owner import Owner
from sender.daemon.leases import BeatWatch
from sender.library.library import Library
from sender.store.records.casts import Cast
from sender.store.records.images import ImageState
from sender.store.repositories.leases import Leases
from sender.store.store import Store
from sender.store.write_behind import Recorder

_log = structlog.get_logger(__name__)


class LeaseAcquirer:
    """The leases of one owner. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        registry: CastRegistry,
        owner: Owner,
        library: Library,
        *,
        sites: Collection[str],
    ) -> None:
        """Acquire leases for ``owner``.

        Args:
            store: the database.
            recorder: releases leases after everything that it wrote before.
            registry: casts in memory.
            owner: name of this daemon's run in the database.
            library: its images. Casts of other images are left to the other daemons at first.
            sites: sites that this daemon serves; empty: any.
        """
        self._store = store
        self._recorder = recorder
        self._registry = registry
        self._owner = owner
        self._library = library
        self._sites = tuple(sites)
        self._watch = BeatWatch()

    def reset_after_outage(self) -> None:
        """Restart every daemon's silence timer after a database outage."""
        self._watch.reset()

    async def renew(self, cast_ids: Collection[str]) -> set[str]:
        """Renew leases and return those that this daemon still holds.

        Raises:
            DatabaseError: the database is unavailable.
        """
        return await self._store.run(self._store.leases.renew, str(self._owner), cast_ids)

    def release(self, cast_id: str) -> None:
        """Release a lease, after every record of the cast is written."""
        self._recorder.put(("lease", cast_id), Leases.release, str(self._owner), cast_id)

    async def acquire(self, known: Container[str], free_count: int) -> list[Cast]:
        """Lease casts that are due and casts of dead daemons, within the capacity.

        Args:
            known: casts that this daemon runs, or that have just ended here.
            free_count: number of casts that it could run in addition.

        Raises:
            DatabaseError: the database is unavailable.
        """
        store, owner = self._store, str(self._owner)
        beats = await store.run(store.leases.beats)
        image_ids = {image.image_id for image in self._library.images() if image.state is not ImageState.GONE}
        stale = self._watch.observe(
            {key: beat for key, beat in beats.items() if beat[0] != owner},
            time.monotonic(),
            {key for key, cast in self._registry.unfinished.items() if cast.plan.image_id not in image_ids},
        )
        for cast_id, (other, beat) in beats.items():
            if self._owner.is_earlier_run(other) or (store.exclusive and other != owner):
                stale.append((cast_id, other, beat))
        # Leased by this daemon, but the answer was lost: the cast isn't started yet.
        acquired: list[Cast] = []
        for cast_id in [key for key, beat in beats.items() if beat[0] == owner]:
            if cast_id not in known:
                cast = await store.run(store.casts.get, cast_id)
                acquired += [cast] if cast is not None else []
        for cast_id, other, beat in dict.fromkeys(stale):
            if len(acquired) >= free_count or not await self._may_serve(cast_id):
                continue
            if await store.run(store.leases.take_over, cast_id, other, beat, owner):
                _log.warning("cast_taken_over", cast=cast_id, from_owner=other)
                cast = await store.run(store.casts.get, cast_id)
                acquired += [cast] if cast is not None else []
        if free_count > len(acquired):
            acquired += await store.run(
                store.leases.acquire,
                owner,
                datetime.now(UTC),
                self._sites,
                free_count - len(acquired),
                # No other daemon can use an exclusive database, so there is nobody to leave a cast to.
                image_ids=None if store.exclusive else image_ids,
            )
        return acquired

    async def _may_serve(self, cast_id: str) -> bool:
        """Return whether the cast's room is at one of this daemon's sites."""
        store = self._store
        cast = self._registry.unfinished.get(cast_id)
        if cast is None:
            cast = await store.run(store.casts.get, cast_id)
        if not self._sites or cast is None or cast.plan.room_id is None:
            return cast is not None
        room = await store.run(store.rooms.get, cast.plan.room_id)
        return room is None or not room.site or room.site in self._sites
