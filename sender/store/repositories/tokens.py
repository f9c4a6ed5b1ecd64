"""Access tokens. A token's secret is shown once; only its SHA-256 is stored."""

from __future__ import annotations

import builtins
import secrets
from datetime import datetime, timedelta

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.database.column_types import clean_text
from sender.store.database.errors import ConflictError
from sender.store.records.access import Role, Token
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.credentials import SECRET_BYTES, hash_secret, token_of
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import reading, writing

LAST_USED_INTERVAL_S = 60.0
"""Shortest interval between two updates of a token's ``last_used_at``."""

_TOKEN = tables.tokens.c


class Tokens(AuditedRepository):
    """Repository of tokens."""

    @writing
    def create(
        self,
        name: str,
        role: Role,
        expires: datetime | None = None,
        *,
        room_id: str | None = None,
        created_by: str = "local",
        audit: AuditNote | None = None,
    ) -> tuple[Token, str]:
        """Create a token; return it and its secret, which isn't stored. Raises ``ConflictError`` for a taken name."""
        if self._connection.execute(
            sa.select(_TOKEN.token_id).where(_TOKEN.name == clean_text(name))
        ).first():
            raise ConflictError(f"token {name!r} exists already; choose another name, or remove that token")
        secret = f"dct_{role}_{secrets.token_urlsafe(SECRET_BYTES)}"
        token = Token(
            f"t{secrets.token_hex(6)}",
            clean_text(name),
            role,
            self._now(),
            created_by,
            expires,
            None,
            room_id,
        )
        values = {field: getattr(token, field) for field in Token.__dataclass_fields__}
        self._connection.execute(sa.insert(tables.tokens).values(**values, secret_hash=hash_secret(secret)))
        detail = {
            "name": name,
            "role": role.value,
            "room_id": room_id,
            "expires_at": expires.isoformat() if expires else None,
        }
        self._audit.note(audit, "token.create", f"token {token.token_id}", detail)
        return token, secret

    @writing
    def used(self, token_id: str) -> None:
        """Record a token's use, at most once in :data:`LAST_USED_INTERVAL_S`."""
        now = self._now()
        outdated = now - timedelta(seconds=LAST_USED_INTERVAL_S)
        query = sa.update(tables.tokens).where(
            _TOKEN.token_id == token_id, sa.or_(_TOKEN.last_used_at.is_(None), _TOKEN.last_used_at < outdated)
        )
        self._connection.execute(query.values(last_used_at=now))

    @reading
    def get(self, token_id: str) -> Token | None:
        """Return a token, or None."""
        return self._get(token_id)

    @reading
    def list(self, after: str | None = None, limit: int = 50) -> tuple[builtins.list[Token], str | None]:
        """Return a page of tokens, expired ones included, by name."""
        return read_page(self._connection, _query(), [_TOKEN.name, _TOKEN.token_id], after, limit, token_of)

    @writing
    def remove(self, token_id: str, *, audit: AuditNote | None = None) -> bool:
        """Revoke a token and its sessions; return False if it doesn't exist."""
        token = self._get(token_id)
        if token is None:
            return False
        self._connection.execute(sa.delete(tables.sessions).where(tables.sessions.c.token_id == token_id))
        self._connection.execute(sa.delete(tables.tokens).where(_TOKEN.token_id == token_id))
        self._audit.note(audit, "token.remove", f"token {token_id}", {"name": token.name})
        return True

    def _get(self, token_id: str) -> Token | None:
        row = self._connection.execute(_query().where(_TOKEN.token_id == token_id)).mappings().first()
        return None if row is None else token_of(row)


def _query() -> sa.Select[tuple[object, ...]]:
    return sa.select(*(column for column in _TOKEN if column.name != "secret_hash"))
