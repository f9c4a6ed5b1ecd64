"""Valid secrets, by their SHA-256: those of tokens, and those of the dashboard's sessions."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.records.access import Credential, Role, Session, Token
from sender.store.repositories.audit import AuditedRepository, AuditNote
from sender.store.repositories.transactions import reading, writing

SECRET_BYTES: Final = 32
"""256 random bits can't be guessed, so a plain SHA-256 protects them."""
SESSIONS_PER_TOKEN_MAX: Final = 50
"""Sessions of one token: every tab of a browser shares one. A script that logs in again and again ends its oldest."""

_TOKEN = tables.tokens.c
_SESSION = tables.sessions.c


def hash_secret(secret: str) -> str:
    """Return the form in which the store keeps a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_session(token: Token, now: datetime, lifetime: timedelta) -> tuple[Session, str]:
    """Return a session of ``token`` and its secret, which isn't stored."""
    secret = f"dcs_{secrets.token_urlsafe(SECRET_BYTES)}"
    expires = now + lifetime if token.expires_at is None else min(now + lifetime, token.expires_at)
    return Session(f"s{secrets.token_hex(6)}", hash_secret(secret), token.token_id, now, expires), secret


class Credentials(AuditedRepository):
    """Repository of sessions, and a view of all valid secrets."""

    @reading
    def all(self) -> dict[str, Credential]:
        """Return every valid credential by the hash of its secret."""
        now = self._now()
        tokens = {
            token.token_id: (key, token) for key, token in self._tokens() if _lasts(token.expires_at, now)
        }
        found = {key: Credential(token, None) for key, token in tokens.values()}
        for row in self._connection.execute(sa.select(tables.sessions)).mappings():
            session = Session(**row)
            if _lasts(session.expires_at, now) and session.token_id in tokens:
                found[session.secret_hash] = Credential(tokens[session.token_id][1], session)
        return found

    @reading
    def find(self, secret_hash: str) -> Credential | None:
        """Return a valid credential by the hash of its secret, or None."""
        now = self._now()
        query = sa.select(tables.sessions).where(_SESSION.secret_hash == secret_hash)
        row = self._connection.execute(query).mappings().first()
        session = None if row is None else Session(**row)
        if session is not None and not _lasts(session.expires_at, now):
            return None
        wanted = _TOKEN.secret_hash == secret_hash if session is None else _TOKEN.token_id == session.token_id
        token = next((token for _key, token in self._tokens(wanted)), None)
        return Credential(token, session) if token is not None and _lasts(token.expires_at, now) else None

    @writing
    def add_session(self, session: Session, *, audit: AuditNote | None = None) -> None:
        """Add a session, unless its token was revoked; adding it twice does no harm."""
        if not self._connection.execute(
            sa.select(_TOKEN.token_id).where(_TOKEN.token_id == session.token_id)
        ).first():
            return
        values = {field: getattr(session, field) for field in Session.__dataclass_fields__}
        insert = self._database.insert(tables.sessions).values(**values)
        insert = insert.on_conflict_do_nothing(index_elements=["session_id"])
        # Not rowcount: psycopg doesn't know it for an INSERT.
        if self._connection.execute(insert.returning(_SESSION.session_id)).first():
            self._audit.note(audit, "session.create", f"session {session.session_id}")
        self._remove_oldest(session.token_id)

    @writing
    def remove_session(self, session_id: str, *, audit: AuditNote | None = None) -> bool:
        """Revoke a session; return False if it doesn't exist."""
        removed = self._connection.execute(
            sa.delete(tables.sessions).where(_SESSION.session_id == session_id)
        )
        if removed.rowcount:
            self._audit.note(audit, "session.remove", f"session {session_id}")
        return bool(removed.rowcount)

    @writing
    def expire(self) -> None:
        """Remove expired sessions."""
        self._connection.execute(sa.delete(tables.sessions).where(_SESSION.expires_at <= self._now()))

    def _remove_oldest(self, token_id: str) -> None:
        query = sa.select(_SESSION.session_id).where(_SESSION.token_id == token_id)
        oldest = query.order_by(_SESSION.created_at.desc(), _SESSION.session_id).offset(
            SESSIONS_PER_TOKEN_MAX
        )
        excess = list(self._connection.execute(oldest).scalars())
        if excess:
            self._connection.execute(sa.delete(tables.sessions).where(_SESSION.session_id.in_(excess)))

    def _tokens(self, *conditions: sa.ColumnElement[bool]) -> list[tuple[str, Token]]:
        rows = self._connection.execute(sa.select(tables.tokens).where(*conditions)).mappings()
        return [(row["secret_hash"], token_of(row)) for row in rows]


def token_of(row: sa.RowMapping) -> Token:
    """Return a row of the table as a token, without the hash of its secret."""
    fields = {name: row[name] for name in Token.__dataclass_fields__}
    return Token(**{**fields, "role": Role(row["role"])})


def _lasts(expires_at: datetime | None, now: datetime) -> bool:
    return expires_at is None or now < expires_at
