"""Captures: one unfinished capture for each machine, each change with its audit entry."""

from __future__ import annotations

import builtins
from typing import Any, Final

import sqlalchemy as sa
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from sender.store.database import tables
from sender.store.database.errors import ConflictError
from sender.store.records.captures import CAPTURE_TRANSITIONS, Capture
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import reading, writing

UNFINISHED_MAX: Final = 256
"""Unfinished captures: many more than there are reference machines."""

_ADAPTER: Final = TypeAdapter(Capture)
_CAPTURE = tables.captures.c
_LIVE: Final = frozenset({"rate_bytes_per_s", "eta_s"})
_STORED: Final = tuple(name for name in Capture.__dataclass_fields__ if name not in _LIVE)
_ENDED: Final = tuple(state.value for state, following in CAPTURE_TRANSITIONS.items() if not following)


class Captures(AuditedRepository):
    """Repository of captures."""

    @writing
    def add(self, capture: Capture, *, audit: AuditNote) -> None:
        """Add a planned capture.

        Raises:
            ConflictError: the machine has an unfinished capture, the file is taken, or there are too many.
        """
        unfinished = self._read(_CAPTURE.state.not_in(_ENDED))
        if len(unfinished) >= UNFINISHED_MAX:
            raise ConflictError(
                f"{UNFINISHED_MAX} captures are unfinished already: cancel some, or wait for them"
            )
        for other in unfinished:
            if other.plan.machine_id == capture.plan.machine_id:
                raise ConflictError(
                    f"capture {other.capture_id} of {other.machine_name} isn't finished: wait for it, or cancel it"
                )
            if (other.owner, other.location) == (capture.owner, capture.location):
                raise ConflictError(
                    f"capture {other.capture_id} writes {other.location}: wait for it, or choose another name"
                )
        self._connection.execute(sa.insert(tables.captures).values(**_values(capture), secret_hash=""))
        detail = {"machine": capture.machine_name, "name": capture.plan.name, "source": capture.plan.source}
        self._audit.note(audit, "capture.create", f"capture {capture.capture_id}", detail)

    @writing
    def change(
        self, capture: Capture, *, secret_hash: str | None = None, audit: AuditNote | None = None
    ) -> bool:
        """Replace the record of an unfinished capture; return False if it has ended or doesn't exist."""
        values = _values(capture)
        if secret_hash is not None:
            values["secret_hash"] = secret_hash
        query = sa.update(tables.captures).where(
            _CAPTURE.capture_id == capture.capture_id, _CAPTURE.state.not_in(_ENDED)
        )
        changed = self._connection.execute(query.values(**values)).rowcount == 1
        if changed:
            detail = {"machine": capture.machine_name, "name": capture.plan.name}
            action = f"capture.{capture.state.value}"
            self._audit.note(audit, action, f"capture {capture.capture_id}", detail)
        return changed

    @reading
    def get(self, capture_id: str) -> Capture | None:
        """Return a capture, or None."""
        found = self._read(_CAPTURE.capture_id == capture_id)
        return found[0] if found else None

    @reading
    def unfinished(self, owner: str) -> builtins.list[tuple[Capture, str]]:
        """Return the unfinished captures of a daemon with the hashes of their secrets, the oldest first."""
        query = sa.select(tables.captures).where(_CAPTURE.owner == owner, _CAPTURE.state.not_in(_ENDED))
        rows = self._connection.execute(query.order_by(_CAPTURE.created_at, _CAPTURE.capture_id)).mappings()
        return [(_capture(row), row["secret_hash"]) for row in rows]

    @reading
    def list(
        self,
        *,
        machine_id: str | None = None,
        image_id: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> tuple[builtins.list[Capture], str | None]:
        """Return a page of captures, of one machine, of one image, or of all, the latest first."""
        query = sa.select(tables.captures)
        if machine_id is not None:
            query = query.where(_CAPTURE.machine_id == machine_id)
        if image_id is not None:
            query = query.where(_CAPTURE.image_id == image_id)
        order = [_CAPTURE.created_at, _CAPTURE.capture_id]
        return read_page(self._connection, query, order, after, limit, _capture, newest_first=True)

    def _read(self, *conditions: sa.ColumnElement[bool]) -> builtins.list[Capture]:
        rows = self._connection.execute(sa.select(tables.captures).where(*conditions)).mappings()
        return [_capture(row) for row in rows]


def _values(capture: Capture) -> dict[str, Any]:
    values = {name: getattr(capture, name) for name in _STORED}
    return values | {
        "plan": to_jsonable_python(capture.plan),
        "machine_id": capture.plan.machine_id,
        "state": capture.state.value,
    }


def _capture(row: sa.RowMapping) -> Capture:
    return _ADAPTER.validate_python({name: row[name] for name in _STORED})
