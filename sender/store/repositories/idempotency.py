"""Answers that were given, so that a request that is sent again gets the same one and does nothing twice."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.repositories.transactions import Repository, reading, writing, writing_again

REMEMBERED_S = 24 * 3600.0
"""How long an answer is kept: a client that tries again later than a day means a new request."""
ABANDONED_S = 60.0
"""A request that got no answer for this long was cut off, by a crash for instance: its key may be used again."""
ANSWER_BYTES_MAX = 1 << 20
"""A creation's answer is one record; more isn't kept."""

_KEPT = tables.idempotency.c


@dataclasses.dataclass(frozen=True, slots=True)
class Remembered:
    """A request that came before with the same key.

    Attributes:
        fingerprint: of its content; if it isn't the same now, the key is being used for something else.
        status: of its answer; None while it is still being worked on.
        headers: of its answer.
        body: of its answer.
    """

    fingerprint: str
    status: int | None
    headers: dict[str, str]
    body: bytes


class IdempotencyKeys(Repository):
    """Requests by scope (who asks for what) and the client's key."""

    @writing_again
    def begin(self, scope: str, key: str, fingerprint: str) -> Remembered | None:
        """None: go ahead, and call :meth:`finish` or :meth:`abandon`. Else what came before."""
        here = (_KEPT.scope == scope, _KEPT.key == key)
        row = self._connection.execute(sa.select(tables.idempotency).where(*here)).first()
        now = self._now()
        if row is not None:
            age_s = (now - row.at).total_seconds()
            if age_s < (ABANDONED_S if row.status is None else REMEMBERED_S):
                return Remembered(row.fingerprint, row.status, dict(row.headers), bytes(row.body))
            self._connection.execute(sa.delete(tables.idempotency).where(*here))
        values = {"scope": scope, "key": key, "fingerprint": fingerprint, "status": None}
        self._connection.execute(sa.insert(tables.idempotency).values(**values, headers={}, body=b"", at=now))
        return None

    @writing
    def finish(
        self, scope: str, key: str, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        """Keep the answer; one that is too large to keep is forgotten."""
        if len(body) > ANSWER_BYTES_MAX:
            self.abandon(scope, key)
            return
        query = sa.update(tables.idempotency).where(_KEPT.scope == scope, _KEPT.key == key)
        self._connection.execute(
            query.values(status=status, body=body, headers=headers or {}, at=self._now())
        )

    @writing
    def abandon(self, scope: str, key: str) -> None:
        """Nothing was done: the key may be used again."""
        self._connection.execute(sa.delete(tables.idempotency).where(_KEPT.scope == scope, _KEPT.key == key))

    @writing
    def expire(self) -> int:
        """Forget what is older than :data:`REMEMBERED_S`; returns how many."""
        old = self._now() - timedelta(seconds=REMEMBERED_S)
        return self._connection.execute(sa.delete(tables.idempotency).where(_KEPT.at < old)).rowcount

    @reading
    def count(self) -> int:
        """Answers that are kept."""
        return self._connection.execute(
            sa.select(sa.func.count()).select_from(tables.idempotency)
        ).scalar_one()
