"""The audit log: entries are only ever added, in the transaction of the change that they record."""

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
from sender.store.repositories.transactions import Database, Repository, reading, writing

_ENTRY = tables.audit.c


@dataclasses.dataclass(frozen=True, slots=True)
class AuditNote:
    """An audit entry for a change, written in the same transaction as the change.

    Attributes:
        actor: as :attr:`AuditEntry.actor`.
        action: for example ``room.change``; empty: the default action of the method.
        request_id: id of the API call.
        detail: details beyond those that the method records itself.
    """

    actor: str
    action: str = ""
    request_id: str = ""
    detail: Mapping[str, object] = dataclasses.field(default_factory=dict)


def new_entry_key() -> str:
    """Return a unique key for :meth:`Audit.add`."""
    return secrets.token_hex(16)


class Audit(Repository):
    """Repository of audit entries."""

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
        """Add an entry that belongs to no change of the store's own, for example ``cast.done``.

        Args:
            actor: as :attr:`AuditEntry.actor`.
            action: as :attr:`AuditEntry.action`.
            subject: as :attr:`AuditEntry.subject`.
            detail: as :attr:`AuditEntry.detail`.
            request_id: id of the API call.
            entry_key: from :func:`new_entry_key`; makes it safe to add the entry again after an answer was lost.
            at: time of the action; None: now.
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
        """Write ``note`` in the transaction of its change; do nothing for None."""
        if note is not None:
            full_detail = {**(detail or {}), **note.detail}
            self.add(note.actor, note.action or action, subject, full_detail, note.request_id)

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
        """Return a page of entries, the latest first, from ``since`` (included) to ``until`` (excluded)."""
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


class AuditedRepository(Repository):
    """A repository whose changes are audited."""

    def __init__(self, database: Database, audit: Audit) -> None:
        super().__init__(database)
        self._audit = audit


def _entry(row: sa.RowMapping | Mapping[str, Any]) -> AuditEntry:
    return AuditEntry(**row)
