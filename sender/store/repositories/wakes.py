"""Wakes: requests to wake machines, with the result of each machine."""

from __future__ import annotations

import builtins
from typing import Any, Final

import sqlalchemy as sa
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from sender.store.database import tables
from sender.store.records.wakes import Wake
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import reading, writing

_ADAPTER: Final = TypeAdapter(Wake)
_WAKE = tables.wakes.c
_JSON: Final = ("machines", "interfaces")


class Wakes(AuditedRepository):
    """Repository of wakes."""

    @writing
    def put(self, wake: Wake, *, audit: AuditNote | None = None) -> None:
        """Add a wake, or replace its record."""
        values: dict[str, Any] = {name: getattr(wake, name) for name in Wake.__dataclass_fields__}
        values |= {name: to_jsonable_python(values[name]) for name in _JSON}
        insert = self._database.insert(tables.wakes).values(**values)
        changing = {name: insert.excluded[name] for name in ("machines", "interfaces", "problem", "ended_at")}
        self._connection.execute(insert.on_conflict_do_update(index_elements=["wake_id"], set_=changing))
        detail = {"room_id": wake.room_id, "cast_id": wake.cast_id, "machines": len(wake.machines)}
        self._audit.note(audit, "wake.start", f"wake {wake.wake_id}", detail)

    @reading
    def get(self, wake_id: str) -> Wake | None:
        """Return a wake, or None."""
        row = (
            self._connection.execute(sa.select(tables.wakes).where(_WAKE.wake_id == wake_id))
            .mappings()
            .first()
        )
        return None if row is None else _wake(row)

    @reading
    def list(
        self, room_id: str | None = None, after: str | None = None, limit: int = 50
    ) -> tuple[builtins.list[Wake], str | None]:
        """Return a page of wakes, of one room or of all, the latest first."""
        query = sa.select(tables.wakes)
        if room_id is not None:
            query = query.where(_WAKE.room_id == room_id)
        return read_page(
            self._connection,
            query,
            [_WAKE.created_at, _WAKE.wake_id],
            after,
            limit,
            _wake,
            newest_first=True,
        )


def _wake(row: sa.RowMapping) -> Wake:
    return _ADAPTER.validate_python(dict(row))
