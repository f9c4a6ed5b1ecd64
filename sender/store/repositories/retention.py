"""Retention: removal of casts, history and audit entries beyond the configured age, in small steps."""

from __future__ import annotations

import dataclasses
import time
from datetime import datetime, timedelta

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.repositories.audit import AuditedRepository
from sender.store.repositories.transactions import reading, writing

BATCH_ROWS = 1000
"""Rows of a transaction: it takes some tens of milliseconds, so that the writes of running casts hardly wait."""
RUN_S = 5.0
"""Duration of a run: half of what :meth:`Store.run` allows a call."""

_CAST = tables.casts.c


@dataclasses.dataclass(frozen=True, slots=True)
class Removed:
    """Counts of removed rows."""

    casts_count: int
    lines_count: int
    audit_count: int
    unfinished: bool = False
    """More rows remain to be removed by another call."""


class Retention(AuditedRepository):
    """Removal of old casts, history and audit entries."""

    def apply(self, days: int | None, limit_s: float = RUN_S) -> Removed:
        """Remove casts that ended more than ``days`` ago, all their rows, and audit entries of that age.

        The removal itself is recorded in the audit log. It runs in short transactions and stops after ``limit_s``,
        finished or not. None: keep everything.
        """
        if days is None:
            return Removed(0, 0, 0)
        before = self._now() - timedelta(days=days)
        end = time.monotonic() + limit_s
        lines = casts = entries = 0
        while time.monotonic() < end and (cast_ids := self._old_casts(before)):
            for table in (tables.cast_machines, tables.cast_events):
                while time.monotonic() < end and (removed := self._remove_of(table, cast_ids)):
                    lines += removed if table is tables.cast_machines else 0
            if time.monotonic() < end:
                casts += self._remove_casts(cast_ids)
        while time.monotonic() < end and self._remove_wakes(before):
            pass
        while time.monotonic() < end and (removed := self._remove_audit(before)):
            entries += removed
        unfinished = time.monotonic() >= end
        if casts or lines or entries:
            detail: dict[str, object] = {
                "days": days,
                "casts": casts,
                "lines": lines,
                "audit_entries": entries,
            }
            self._audit.add("retention", "history.remove", f"before {before.isoformat()}", detail)
        return Removed(casts, lines, entries, unfinished)

    @reading
    def _old_casts(self, before: datetime) -> list[str]:
        query = sa.select(_CAST.cast_id).where(_CAST.ended_at < before).order_by(_CAST.ended_at).limit(100)
        return list(self._connection.execute(query).scalars())

    @writing
    def _remove_of(self, table: sa.Table, cast_ids: list[str]) -> int:
        key = next(iter(table.primary_key))
        chosen = sa.select(key).where(table.c.cast_id.in_(cast_ids)).limit(BATCH_ROWS)
        return self._connection.execute(sa.delete(table).where(key.in_(chosen))).rowcount

    @writing
    def _remove_casts(self, cast_ids: list[str]) -> int:
        for table in (tables.cast_timelines, tables.cast_requests, tables.cast_keys):
            self._connection.execute(sa.delete(table).where(table.c.cast_id.in_(cast_ids)))
        return self._connection.execute(sa.delete(tables.casts).where(_CAST.cast_id.in_(cast_ids))).rowcount

    @writing
    def _remove_wakes(self, before: datetime) -> int:
        wake = tables.wakes.c
        chosen = sa.select(wake.wake_id).where(wake.created_at < before).order_by(wake.created_at).limit(100)
        return self._connection.execute(sa.delete(tables.wakes).where(wake.wake_id.in_(chosen))).rowcount

    @writing
    def _remove_audit(self, before: datetime) -> int:
        entry = tables.audit.c
        chosen = sa.select(entry.entry_id).where(entry.at < before).order_by(entry.at).limit(BATCH_ROWS)
        return self._connection.execute(sa.delete(tables.audit).where(entry.entry_id.in_(chosen))).rowcount
