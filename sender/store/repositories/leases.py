"""Leases: exclusive ownership of casts by daemons, without comparing clocks.

The daemon that holds a cast's lease keeps incrementing its beat. Another daemon takes the cast over when it has read
the same owner and the same beat for :data:`LEASE_STALE_S`, without a failed read in between. While the database is
unavailable, leases don't age: the owner can't beat, and the others can't read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.records.casts import Cast
from sender.store.repositories.casts import OPEN_PHASES, cast_of_row
from sender.store.repositories.transactions import Repository, reading, writing

LEASE_BEAT_S = 2.0
"""Interval at which an owner beats and the other daemons read the beats."""
LEASE_STALE_S = 6.0
"""Three beats: one may be late and one may be lost. A takeover completes within ten seconds of a daemon's crash."""
IMAGE_GRACE_S = 3 * LEASE_BEAT_S
"""Time for which a daemon without a cast's image leaves the cast to the others; then it takes the cast, and reports the
image as missing."""

_CAST = tables.casts.c


class Leases(Repository):
    """Repository of leases. An owner is one run of a daemon: ``NAME/RANDOM``."""

    @writing
    def acquire(
        self,
        owner: str,
        now: datetime,
        sites: Iterable[str],
        capacity: int,
        *,
        image_ids: Collection[str] | None = None,
    ) -> list[Cast]:
        """Take casts that no daemon runs: due, not ended, the longest waiting first.

        Args:
            owner: the new owner.
            now: a cast is due when its ``start_at`` has passed.
            sites: take only casts for rooms of these sites, for rooms without a site, and for no room; empty: any.
            capacity: number of casts at most.
            image_ids: take casts of other images only when they have been due for :data:`IMAGE_GRACE_S`; None: any.
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
        if image_ids is not None:
            due_at = sa.func.coalesce(_CAST.start_at, _CAST.created_at)
            left = due_at <= now - timedelta(seconds=IMAGE_GRACE_S)
            query = query.where(sa.or_(_CAST.image_id.in_(image_ids), left))
        served_sites = list(sites)
        if served_sites:
            room = tables.rooms.c
            elsewhere = sa.select(room.room_id).where(room.site != "", room.site.not_in(served_sites))
            query = query.where(sa.or_(_CAST.room_id.is_(None), _CAST.room_id.not_in(elsewhere)))
        # Skip rows that another daemon is taking now. SQLite ignores this: it has one writer at a time.
        cast_ids = self._connection.execute(query.with_for_update(skip_locked=True)).scalars().all()
        return self._take(owner, cast_ids)

    @writing
    def renew(self, owner: str, cast_ids: Iterable[str]) -> set[str]:
        """Beat; return the casts that ``owner`` still holds. The caller must stop the others at once."""
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
        """Return owner and beat of every leased cast that hasn't ended."""
        rows = self._connection.execute(
            sa.select(_CAST.cast_id, _CAST.lease_owner, _CAST.lease_beat).where(
                _CAST.phase.in_(OPEN_PHASES), _CAST.lease_owner != ""
            )
        )
        return {row.cast_id: (row.lease_owner, row.lease_beat) for row in rows}

    @writing
    def release(self, owner: str, cast_id: str) -> bool:
        """Release a cast; return False if ``owner`` no longer held it."""
        result = self._connection.execute(
            sa.update(tables.casts)
            .where(_CAST.cast_id == cast_id, _CAST.lease_owner == owner)
            .values(lease_owner="", lease_beat=_CAST.lease_beat + 1)
        )
        return result.rowcount == 1

    @writing
    def take_over(self, cast_id: str, from_owner: str, beat: int, owner: str) -> bool:
        """Take a cast from a dead owner; return False if the owner beat, released it or lost it in the meantime."""
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
