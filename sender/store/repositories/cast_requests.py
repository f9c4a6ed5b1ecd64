"""Commands for casts that another daemon runs, kept until that daemon has carried them out."""

from __future__ import annotations

import builtins

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.records.casts import CastPhase, CastRequest, Command
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.transactions import reading, writing

_REQUEST = tables.cast_requests.c
_CAST = tables.casts.c
_OPPOSITE = {Command.PAUSE: Command.RESUME, Command.RESUME: Command.PAUSE}


class CastRequests(AuditedRepository):
    """Repository of requested commands."""

    @writing
    def request(self, request: CastRequest, *, audit: AuditNote | None = None) -> bool:
        """Request a command of the daemon that runs the cast; return False if the cast doesn't exist or has ended.

        The request replaces earlier ones that it makes pointless: resume replaces pause and vice versa, cancel replaces
        every other.
        """
        cast_id, command = request.cast_id, request.command
        # Locked, so that the cast can't end in the meantime. SQLite ignores this: it has one writer at a time.
        query = sa.select(_CAST.phase).where(_CAST.cast_id == cast_id).with_for_update()
        phase = self._connection.execute(query).scalar_one_or_none()
        if phase is None or CastPhase(phase).ended:
            return False
        replaced = sa.delete(tables.cast_requests).where(_REQUEST.cast_id == cast_id)
        if command is not Command.CANCEL:
            replaced = replaced.where(_REQUEST.command == _OPPOSITE.get(command, ""))
        self._connection.execute(replaced)
        insert = self._database.insert(tables.cast_requests).values(
            cast_id=cast_id, command=command, actor=request.actor, reason=request.reason
        )
        self._connection.execute(insert.on_conflict_do_nothing(index_elements=["cast_id", "command"]))
        self._audit.note(audit, f"cast.{command}", f"cast {cast_id}")
        return True

    @reading
    def requests(self, owner: str) -> builtins.list[CastRequest]:
        """Return the requests for casts whose lease ``owner`` holds, in the order of their arrival."""
        rows = self._connection.execute(
            sa.select(_REQUEST.cast_id, _REQUEST.command, _REQUEST.actor, _REQUEST.reason)
            .join(tables.casts, _CAST.cast_id == _REQUEST.cast_id)
            .where(_CAST.lease_owner == owner)
            .order_by(_REQUEST.request_id)
        )
        return [CastRequest(row.cast_id, Command(row.command), row.actor, row.reason) for row in rows]

    @writing
    def clear_request(self, cast_id: str, command: Command | None = None) -> None:
        """Remove a request that was carried out; None: every request for the cast."""
        query = sa.delete(tables.cast_requests).where(_REQUEST.cast_id == cast_id)
        self._connection.execute(query if command is None else query.where(_REQUEST.command == command))
