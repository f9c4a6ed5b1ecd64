"""Leases: which daemon runs which cast, without anybody comparing clocks.

A daemon that holds a cast's lease counts its beat up again and again. Another one takes the cast over when it has seen
the same owner and the same beat for :data:`LEASE_STALE_S`, all its looks having succeeded. While the database doesn't
answer, nobody's time runs: neither does the owner beat nor do the others look.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.records.casts import Cast
from sender.store.repositories.casts import OPEN_PHASES, cast_of_row
from sender.store.repositories.transactions import Repository, reading, writing

LEASE_BEAT_S = 2.0
"""How often an owner beats and the others look."""
LEASE_STALE_S = 6.0
"""Three beats: one may be late and one may be lost. Take-over is done within ten seconds of a daemon's end."""

_CAST = tables.casts.c


class Leases(Repository):
    """Who runs which cast. An owner's name is that of one run of a daemon: ``NAME/RANDOM``."""

    @writing
    def acquire(self, owner: str, now: datetime, sites: Iterable[str], capacity: int) -> list[Cast]:
        """Take casts that nobody runs: due, not ended, the longest waiting first.

        Args:
            owner: who takes them.
            now: a cast is due when its ``start_at`` has passed.
            sites: take only casts of rooms of these sites, of rooms without a site, and of no room; empty: any.
            capacity: take so many at most.
        """
        if capacity <= 0:
            return []
        query = (
            sa.select(_CAST.cast_id)
            .where(_CAST.phase.in_(OPEN_PHASES), _CAST.lease_owner == "")
            .where(sa.or_(_CAST.start_at.is_(None), _CAST.start_at <= now))
            .order_by(_CAST.created_at, _CAST.cast_id)
            .limit(capacity)
        )
        served = list(sites)
        if served:
            room = tables.rooms.c
            elsewhere = sa.select(room.room_id).where(room.site != "", room.site.not_in(served))
            query = query.where(sa.or_(_CAST.room_id.is_(None), _CAST.room_id.not_in(elsewhere)))
        # Rows that another daemon is just taking aren't waited for (ignored by SQLite, which has one writer at a time).
        cast_ids = self._connection.execute(query.with_for_update(skip_locked=True)).scalars().all()
        return self._take(owner, cast_ids)

    @writing
    def renew(self, owner: str, cast_ids: Iterable[str]) -> set[str]:
        """Beat; returns those of ``cast_ids`` that are still ``owner``'s. The others must be stopped at once."""
        wanted = list(cast_ids)
        if not wanted:
            return set()
        rows = self._connection.execute(
            sa.update(tables.casts)
            .where(_CAST.cast_id.in_(wanted), _CAST.lease_owner == owner)
            .values(lease_beat=_CAST.lease_beat + 1)
            .returning(_CAST.cast_id)
        )
        return set(rows.scalars())

    @reading
    def beats(self) -> dict[str, tuple[str, int]]:
        """Owner and beat of every cast that hasn't ended and is somebody's."""
        rows = self._connection.execute(
            sa.select(_CAST.cast_id, _CAST.lease_owner, _CAST.lease_beat).where(
                _CAST.phase.in_(OPEN_PHASES), _CAST.lease_owner != ""
            )
        )
        return {row.cast_id: (row.lease_owner, row.lease_beat) for row in rows}

    @writing
    def release(self, owner: str, cast_id: str) -> bool:
        """Give a cast back; False if it wasn't ``owner``'s any more."""
        result = self._connection.execute(
            sa.update(tables.casts)
            .where(_CAST.cast_id == cast_id, _CAST.lease_owner == owner)
            .values(lease_owner="", lease_beat=_CAST.lease_beat + 1)
        )
        return result.rowcount == 1

    @writing
    def take_over(self, cast_id: str, from_owner: str, beat: int, owner: str) -> bool:
        """Take a cast whose owner is gone; False if the owner beat, released it or lost it in the meantime."""
        found = self._connection.execute(
            sa.select(_CAST.cast_id)
            .where(
                _CAST.cast_id == cast_id,
                _CAST.lease_owner == from_owner,
                _CAST.lease_beat == beat,
                _CAST.phase.in_(OPEN_PHASES),
            )
            .with_for_update(skip_locked=True)
        ).scalars()
        return bool(self._take(owner, list(found)))

    def _take(self, owner: str, cast_ids: Sequence[str]) -> list[Cast]:
        if not cast_ids:
            return []
        self._connection.execute(
            sa.update(tables.casts)
            .where(_CAST.cast_id.in_(cast_ids))
            .values(
                lease_owner=owner,
                lease_beat=_CAST.lease_beat + 1,
                owner=owner.partition("/")[0],
                run_count=_CAST.run_count + 1,
            )
        )
        rows = self._connection.execute(
            sa.select(tables.casts)
            .where(_CAST.cast_id.in_(cast_ids))
            .order_by(_CAST.created_at, _CAST.cast_id)
        )
        return [cast_of_row(row) for row in rows.mappings()]
