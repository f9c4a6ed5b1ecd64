"""Which casts this daemon leases: those that are due, and those whose daemon is gone."""

from __future__ import annotations

import time
from collections.abc import Container
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from sender.daemon.leases import BeatWatch, Owner
from sender.store.records.casts import Cast

if TYPE_CHECKING:
    from sender.daemon.context import Services

_log = structlog.get_logger(__name__)


class LeaseTaker:
    """Takes leases for one owner. It belongs to the event loop."""

    def __init__(self, services: Services, owner: Owner) -> None:
        """Take leases for ``owner``."""
        self._services = services
        self._owner = owner
        self._watch = BeatWatch()

    def blind(self) -> None:
        """The database couldn't be asked: whoever seems to be silent gets all the time again."""
        self._watch.blind()

    async def take(self, known: Container[str], free_count: int) -> list[Cast]:
        """Lease what is due and what nobody runs any more, as far as there is room for it.

        Args:
            known: casts that this daemon runs, or that have just ended here.
            free_count: casts that it could run besides.

        Raises:
            DatabaseError: it can't be asked.
        """
        store, owner = self._services.store, str(self._owner)
        beats = await store.run(store.leases.beats)
        stale = self._watch.look(
            {key: beat for key, beat in beats.items() if beat[0] != owner}, time.monotonic()
        )
        for cast_id, (other, beat) in beats.items():
            if self._owner.was_me(other) or (store.exclusive and other != owner):
                stale.append((cast_id, other, beat))
        # Leased by an answer that was lost: ours, and not begun yet.
        taken: list[Cast] = []
        for cast_id in [key for key, beat in beats.items() if beat[0] == owner]:
            if cast_id not in known:
                cast = await store.run(store.casts.get, cast_id)
                taken += [cast] if cast is not None else []
        for cast_id, other, beat in dict.fromkeys(stale):
            if len(taken) >= free_count or not await self._may_serve(cast_id):
                continue
            if await store.run(store.leases.take_over, cast_id, other, beat, owner):
                _log.warning("cast_taken_over", cast=cast_id, from_owner=other)
                cast = await store.run(store.casts.get, cast_id)
                taken += [cast] if cast is not None else []
        if free_count > len(taken):
            sites = self._services.config.server.sites
            taken += await store.run(
                store.leases.acquire, owner, datetime.now(UTC), sites, free_count - len(taken)
            )
        return taken

    async def _may_serve(self, cast_id: str) -> bool:
        """Whether the cast's room is at one of this daemon's sites."""
        sites = self._services.config.server.sites
        cast = self._services.supervisor.unfinished.get(cast_id)
        store = self._services.store
        if cast is None:
            cast = await store.run(store.casts.get, cast_id)
        if not sites or cast is None or cast.plan.room_id is None:
            return cast is not None
        room = await store.run(store.rooms.get, cast.plan.room_id)
        return room is None or not room.site or room.site in sites
