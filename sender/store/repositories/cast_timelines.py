"""Events and charts of casts."""

from __future__ import annotations

import builtins
import json
import zlib
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from protocol.errors import DatabaseDamagedError
from sender.store.database import tables
from sender.store.records.casts import CastEvent, TimelinePoint
from sender.store.repositories.transactions import Repository, reading, writing

EVENTS_MAX = 5000
"""Events of a cast that one call reads: joins and ends of 1024 machines, several times over."""
TIMELINE_BYTES_MAX = 16 << 20
"""Size of an unpacked timeline: 1200 points are a few hundred kB."""

_POINTS: Final = TypeAdapter(list[TimelinePoint])
_CAST = tables.casts.c
_EVENT = tables.cast_events.c
_TIMELINE = tables.cast_timelines.c


class CastTimelines(Repository):
    """Repository of casts' events and timeline points."""

    @reading
    def events(self, cast_id: str) -> builtins.list[CastEvent]:
        """Return the last :data:`EVENTS_MAX` events of a cast, in order of time."""
        rows = self._connection.execute(
            sa.select(_EVENT.at, _EVENT.kind, _EVENT.machine, _EVENT.text)
            .where(_EVENT.cast_id == cast_id)
            .order_by(_EVENT.at.desc(), _EVENT.event_id.desc())
            .limit(EVENTS_MAX)
        )
        return [CastEvent(**row) for row in reversed(rows.mappings().all())]

    @writing
    def add_event(self, cast_id: str, event: CastEvent) -> None:
        """Add an event; ignore one that is recorded already, or whose cast doesn't exist."""
        if self._connection.execute(sa.select(_CAST.cast_id).where(_CAST.cast_id == cast_id)).first():
            values = {"at": event.at, "kind": event.kind, "machine": event.machine, "text": event.text}
            insert = self._database.insert(tables.cast_events).values(cast_id=cast_id, **values)
            self._connection.execute(
                insert.on_conflict_do_nothing(index_elements=["cast_id", "at", "kind", "machine"])
            )

    @reading
    def timeline(self, cast_id: str) -> builtins.list[TimelinePoint]:
        """Return the timeline of a cast; empty if none was written."""
        packed = self._connection.execute(
            sa.select(_TIMELINE.points).where(_TIMELINE.cast_id == cast_id)
        ).scalar_one_or_none()
        if packed is None:
            return []
        try:
            unpacked = zlib.decompressobj().decompress(packed, TIMELINE_BYTES_MAX)
            return _POINTS.validate_python(json.loads(unpacked))
        except (zlib.error, ValueError) as error:
            raise DatabaseDamagedError(
                f"database {self._database.place.text}: the timeline of cast {cast_id} is unreadable ({error}); run "
                "`diskcast database check`"
            ) from error

    @writing
    def put_timeline(
        self, cast_id: str, points: Sequence[TimelinePoint], *, lease: str | None = None
    ) -> bool:
        """Replace the timeline; return False if the cast doesn't exist or ``lease`` no longer holds it."""
        owner = self._connection.execute(
            sa.select(_CAST.lease_owner).where(_CAST.cast_id == cast_id)
        ).scalar_one_or_none()
        if owner is None or lease not in (None, owner):
            return False
        packed = zlib.compress(
            json.dumps(to_jsonable_python(builtins.list(points)), separators=(",", ":")).encode()
        )
        insert = self._database.insert(tables.cast_timelines).values(cast_id=cast_id, points=packed)
        self._connection.execute(
            insert.on_conflict_do_update(index_elements=["cast_id"], set_={"points": insert.excluded.points})
        )
        return True
