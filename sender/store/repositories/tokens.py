"""Tokens: who may do what. A token's secret is shown once and never kept; what is kept is its SHA-256."""

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
from sender.store.repositories.audit import Audit, AuditNote
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import Database, Repository, reading, writing

SECRET_BYTES = 32
"""256 bits of chance: SHA-256 is enough to keep it by, nothing can be tried out."""
USED_AGAIN_S = 60.0
"""A token's use is noted this often at most."""
REMEMBERED_MAX = 1000
"""Tokens that are known while the database doesn't answer."""

_TOKEN = tables.tokens.c
_SECRET = re.compile(r"dct_(view|operate|enrol)_[A-Za-z0-9_-]{43}")


class Tokens(Repository):
    """The tokens."""

    def __init__(self, database: Database, audit: Audit) -> None:
        super().__init__(database)
        self._audit = audit
        self._remembered: OrderedDict[str, Token] = OrderedDict()
        self._lock = threading.Lock()

    @writing
    def create(
        self,
        name: str,
        role: Role,
        expires: datetime | None = None,
        *,
        created_by: str = "local",
        audit: AuditNote | None = None,
    ) -> tuple[Token, str]:
        """A new token and its secret, which can't be had again; ``ConflictError`` if the name is taken."""
        if self._connection.execute(
            sa.select(_TOKEN.token_id).where(_TOKEN.name == clean_text(name))
        ).first():
            raise ConflictError(f"there is a token {name!r} already; choose another name, or remove that one")
        secret = f"dct_{role}_{secrets.token_urlsafe(SECRET_BYTES)}"
        token = Token(
            f"t{secrets.token_hex(6)}", clean_text(name), role, self._now(), created_by, expires, None
        )
        values = {field: getattr(token, field) for field in Token.__dataclass_fields__}
        self._connection.execute(sa.insert(tables.tokens).values(**values, secret_hash=_hash(secret)))
        detail = {"name": name, "role": role.value, "expires_at": expires.isoformat() if expires else None}
        self._audit.note(audit, "token.create", f"token {token.token_id}", detail)
        return token, secret

    def find(self, secret: str) -> Token | None:
        """The token of a secret; None if there is none or its time is over.

        While the database doesn't answer, tokens that were used before are still known, so that operators and agents
        aren't locked out by it.
        """
        if not _SECRET.fullmatch(secret):
            return None
        key = _hash(secret)
        try:
            token = self._find(key)
        except DatabaseError:
            with self._lock:
                token = self._remembered.get(key)
            if token is None:
                raise
        now = self._now()
        if token is None or (token.expires_at is not None and token.expires_at <= now):
            with self._lock:
                self._remembered.pop(key, None)
            return None
        with self._lock:
            self._remembered[key] = token
            self._remembered.move_to_end(key)
            while len(self._remembered) > REMEMBERED_MAX:
                self._remembered.popitem(last=False)
        return token

    @writing
    def used(self, token_id: str) -> None:
        """Note that a token was used now, if that wasn't noted lately."""
        now = self._now()
        lately = now - timedelta(seconds=USED_AGAIN_S)
        query = sa.update(tables.tokens).where(
            _TOKEN.token_id == token_id, sa.or_(_TOKEN.last_used_at.is_(None), _TOKEN.last_used_at < lately)
        )
        self._connection.execute(query.values(last_used_at=now))

    @reading
    def get(self, token_id: str) -> Token | None:
        """One token, or None."""
        return self._get(token_id)

    @reading
    def list(self, after: str | None = None, limit: int = 50) -> tuple[builtins.list[Token], str | None]:
        """Tokens by name, those whose time is over too."""
        return read_page(self._connection, _query(), [_TOKEN.name, _TOKEN.token_id], after, limit, _token)

    @writing
    def remove(self, token_id: str, *, audit: AuditNote | None = None) -> bool:
        """Make a token worthless; False if there is none."""
        token = self._get(token_id)
        if token is None:
            return False
        self._connection.execute(sa.delete(tables.tokens).where(_TOKEN.token_id == token_id))
        self._audit.note(audit, "token.remove", f"token {token_id}", {"name": token.name})
        with self._lock:
            for key in [key for key, known in self._remembered.items() if known.token_id == token_id]:
                del self._remembered[key]
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
