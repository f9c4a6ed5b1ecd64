"""Access tokens. A token's secret is shown once; only its SHA-256 is stored."""

from __future__ import annotations

import builtins
import hashlib
import re
import secrets
import threading
from collections import OrderedDict
from datetime import datetime, timedelta

import sqlalchemy as sa

from protocol.errors import DatabaseError
from sender.store.database import tables
from sender.store.database.column_types import clean_text
from sender.store.database.errors import ConflictError
from sender.store.records.access import Role, Token
from sender.store.repositories.audit import Audit, AuditedRepository, AuditNote
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import Database, reading, writing

SECRET_BYTES = 32
"""256 random bits can't be guessed, so a plain SHA-256 protects them."""
LAST_USED_INTERVAL_S = 60.0
"""Shortest interval between two updates of a token's ``last_used_at``."""
CACHED_MAX = 1000
"""Tokens that stay valid while the database is unavailable."""

_TOKEN = tables.tokens.c
_SECRET = re.compile(r"dct_(view|operate|enrol)_[A-Za-z0-9_-]{43}")


class Tokens(AuditedRepository):
    """Repository of tokens."""

    def __init__(self, database: Database, audit: Audit) -> None:
        super().__init__(database, audit)
        self._cached: OrderedDict[str, Token] = OrderedDict()
        self._lock = threading.Lock()

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
        self._connection.execute(sa.insert(tables.tokens).values(**values, secret_hash=_hash(secret)))
        detail = {
            "name": name,
            "role": role.value,
            "room_id": room_id,
            "expires_at": expires.isoformat() if expires else None,
        }
        self._audit.note(audit, "token.create", f"token {token.token_id}", detail)
        return token, secret

    def find(self, secret: str) -> Token | None:
        """Return the token of a secret; None if there is none or it has expired.

        While the database is unavailable, recently used tokens remain valid: no operator or agent is locked out.
        """
        if not _SECRET.fullmatch(secret):
            return None
        key = _hash(secret)
        try:
            token = self._find(key)
        except DatabaseError:
            with self._lock:
                token = self._cached.get(key)
            if token is None:
                raise
        now = self._now()
        if token is None or (token.expires_at is not None and token.expires_at <= now):
            with self._lock:
                self._cached.pop(key, None)
            return None
        with self._lock:
            self._cached[key] = token
            self._cached.move_to_end(key)
            while len(self._cached) > CACHED_MAX:
                self._cached.popitem(last=False)
        return token

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
        return read_page(self._connection, _query(), [_TOKEN.name, _TOKEN.token_id], after, limit, _token)

    @writing
    def remove(self, token_id: str, *, audit: AuditNote | None = None) -> bool:
        """Revoke a token; return False if it doesn't exist."""
        token = self._get(token_id)
        if token is None:
            return False
        self._connection.execute(sa.delete(tables.tokens).where(_TOKEN.token_id == token_id))
        self._audit.note(audit, "token.remove", f"token {token_id}", {"name": token.name})
        with self._lock:
            for key in [key for key, cached in self._cached.items() if cached.token_id == token_id]:
                del self._cached[key]
        return True

    @reading
    def _find(self, key: str) -> Token | None:
        row = self._connection.execute(_query().where(_TOKEN.secret_hash == key)).mappings().first()
        return None if row is None else _token(row)

    def _get(self, token_id: str) -> Token | None:
        row = self._connection.execute(_query().where(_TOKEN.token_id == token_id)).mappings().first()
        return None if row is None else _token(row)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _query() -> sa.Select[tuple[object, ...]]:
    return sa.select(*(column for column in _TOKEN if column.name != "secret_hash"))


def _token(row: sa.RowMapping) -> Token:
    return Token(**{**row, "role": Role(row["role"])})
