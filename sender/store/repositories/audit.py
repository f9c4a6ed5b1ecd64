"""Who did what, when: entries are only ever added, in the transaction of what they tell."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic_core import to_jsonable_python

from sender.store.database import tables
from sender.store.records.access import AuditEntry
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import Repository, reading, writing

_ENTRY = tables.audit.c


@dataclasses.dataclass(frozen=True, slots=True)
class AuditNote:
    """What a change is to be recorded as; it is written with the change, or neither is.

    Attributes:
        actor: as :attr:`AuditEntry.actor`.
        action: e.g. ``room.change``; empty: the method's own name for it.
        request_id: of the API call.
        detail: more than the method itself tells.
    """

    actor: str
    action: str = ""
    request_id: str = ""
    detail: Mapping[str, object] = dataclasses.field(default_factory=dict)


def new_entry_key() -> str:
    """A key that no other entry has."""
    return secrets.token_hex(16)


class Audit(Repository):
    """The audit's entries."""

    @writing
    def add(
        self,
        actor: str,
        action: str,
        subject: str,
        detail: dict[str, object] | None = None,
        request_id: str = "",
        *,
        entry_key: str | None = None,
        at: datetime | None = None,
    ) -> None:
        """Add an entry that belongs to no change of the store's own, e.g. ``cast.done``.

        Of several with the same ``entry_key``, from :func:`new_entry_key`, the first stands there alone: an entry whose
        answer was lost may be added again. ``at`` is when it was done; None: now.
        """
        insert = self._database.insert(tables.audit).values(
            at=at or self._now(),
            actor=actor,
            action=action,
            subject=subject,
            detail=to_jsonable_python(detail or {}),
            request_id=request_id,
            entry_key=entry_key,
        )
        self._connection.execute(insert.on_conflict_do_nothing(index_elements=["entry_key"]))

    def note(
        self, note: AuditNote | None, action: str, subject: str, detail: Mapping[str, object] | None = None
    ) -> None:
        """Write ``note`` within the change that it tells; None: nobody asked for it."""
        if note is not None:
            told = {**(detail or {}), **note.detail}
            self.add(note.actor, note.action or action, subject, told, note.request_id)

    @reading
    def list(
        self,
        *,
        actor: str | None = None,
        subject: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> tuple[list[AuditEntry], str | None]:
        """Entries, the newest first; ``since`` is included, ``until`` isn't."""
        query = sa.select(*(_ENTRY[name] for name in AuditEntry.__dataclass_fields__))
        if actor is not None:
            query = query.where(_ENTRY.actor == actor)
        if subject is not None:
            query = query.where(_ENTRY.subject == subject)
        if since is not None:
            query = query.where(_ENTRY.at >= since)
        if until is not None:
            query = query.where(_ENTRY.at < until)
        return read_page(
            self._connection, query, [_ENTRY.at, _ENTRY.entry_id], after, limit, _entry, newest_first=True
        )


def _entry(row: sa.RowMapping | Mapping[str, Any]) -> AuditEntry:
    return AuditEntry(**row)
