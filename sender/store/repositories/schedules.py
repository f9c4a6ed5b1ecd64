"""Schedules: casts that are planned again and again."""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any, TypedDict, Unpack

import sqlalchemy as sa
from pydantic_core import to_jsonable_python

from sender.store.database import tables
from sender.store.database.errors import ConflictError
from sender.store.records.casts import CastPlan, Schedule
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.casts import PLAN_ADAPTER
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import reading, writing

DUE_MAX = 100
"""Due schedules that one call returns; the rest are due at the next call."""

_SCHEDULE = tables.schedules.c


class ScheduleUpdate(TypedDict, total=False):
    """Fields of a schedule that can change."""

    name: str
    cron: str
    time_zone: str
    plan: CastPlan
    enabled: bool
    next_at: datetime | None
    last_cast_id: str | None
    problem: str


class Schedules(AuditedRepository):
    """Repository of schedules."""

    @writing
    def add(self, schedule: Schedule, *, audit: AuditNote | None = None) -> Schedule:
        """Add a schedule; raise ``ConflictError`` if its id is taken."""
        if self._get(schedule.schedule_id) is not None:
            raise ConflictError(f"schedule {schedule.schedule_id} exists already; choose another id")
        values = {name: getattr(schedule, name) for name in Schedule.__dataclass_fields__}
        values["plan"] = to_jsonable_python(schedule.plan)
        self._connection.execute(sa.insert(tables.schedules).values(**values))
        self._audit.note(
            audit, "schedule.create", f"schedule {schedule.schedule_id}", to_jsonable_python(schedule)
        )
        return schedule

    @reading
    def get(self, schedule_id: str) -> Schedule | None:
        """Return a schedule, or None."""
        return self._get(schedule_id)

    @reading
    def list(self, after: str | None = None, limit: int = 50) -> tuple[builtins.list[Schedule], str | None]:
        """Return a page of schedules, by name."""
        query = sa.select(tables.schedules)
        return read_page(
            self._connection, query, [_SCHEDULE.name, _SCHEDULE.schedule_id], after, limit, _schedule
        )

    @writing
    def change(
        self, schedule_id: str, *, audit: AuditNote | None = None, **fields: Unpack[ScheduleUpdate]
    ) -> Schedule | None:
        """Change some fields and return the changed schedule; None if it doesn't exist."""
        before = self._get(schedule_id)
        if before is None:
            return None
        changed: dict[str, Any] = {
            name: value for name, value in fields.items() if getattr(before, name) != value
        }
        if changed:
            values = {
                **changed,
                **({"plan": to_jsonable_python(changed["plan"])} if "plan" in changed else {}),
            }
            query = sa.update(tables.schedules).where(_SCHEDULE.schedule_id == schedule_id)
            self._connection.execute(query.values(**values))
            detail = {"from": {name: getattr(before, name) for name in changed}, "to": changed}
            self._audit.note(audit, "schedule.change", f"schedule {schedule_id}", to_jsonable_python(detail))
        return self._get(schedule_id)

    @writing
    def remove(self, schedule_id: str, *, audit: AuditNote | None = None) -> bool:
        """Remove a schedule and keep the casts that it created; return False if it doesn't exist."""
        before = self._get(schedule_id)
        if before is None:
            return False
        self._connection.execute(sa.delete(tables.schedules).where(_SCHEDULE.schedule_id == schedule_id))
        self._audit.note(audit, "schedule.remove", f"schedule {schedule_id}", {"name": before.name})
        return True

    @reading
    def due(self, now: datetime) -> builtins.list[Schedule]:
        """Return the schedules that are due, the longest overdue first."""
        query = sa.select(tables.schedules).where(_SCHEDULE.enabled, _SCHEDULE.next_at <= now)
        rows = self._connection.execute(query.order_by(_SCHEDULE.next_at).limit(DUE_MAX))
        return [_schedule(row) for row in rows.mappings()]

    @writing
    def claim(self, schedule_id: str, seen_at: datetime | None, next_at: datetime | None) -> bool:
        """Move a due schedule on from ``seen_at``, the time that the caller has read, to ``next_at``.

        Of several daemons that see the schedule due, exactly one gets True. That one creates the cast, preferably in
        the same :meth:`Store.transaction`.
        """
        unchanged = _SCHEDULE.next_at.is_(None) if seen_at is None else _SCHEDULE.next_at == seen_at
        query = sa.update(tables.schedules).where(
            _SCHEDULE.schedule_id == schedule_id, _SCHEDULE.enabled, unchanged
        )
        return self._connection.execute(query.values(next_at=next_at)).rowcount == 1

    def _get(self, schedule_id: str) -> Schedule | None:
        query = sa.select(tables.schedules).where(_SCHEDULE.schedule_id == schedule_id)
        row = self._connection.execute(query).mappings().first()
        return None if row is None else _schedule(row)


def _schedule(row: sa.RowMapping) -> Schedule:
    return Schedule(**{**row, "plan": PLAN_ADAPTER.validate_python(row["plan"])})
