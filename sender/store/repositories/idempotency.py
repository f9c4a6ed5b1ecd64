"""Answers by idempotency key: a repeated request gets the first answer and changes nothing."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.repositories.transactions import Repository, reading, writing, writing_again

ANSWER_KEPT_S = 24 * 3600.0
"""Lifetime of an answer: a client that sends a key again after a day means a new request."""
ABANDONED_S = 60.0
"""Age at which an unanswered request counts as cut off, for example by a crash: its key can be used again."""
ANSWER_BYTES_MAX = 1 << 20
"""Size of an answer at most: the answer to a creation is one record."""

_ANSWER = tables.idempotency.c


@dataclasses.dataclass(frozen=True, slots=True)
class Remembered:
    """An earlier request with the same key.

    Attributes:
        fingerprint: digest of the content; a different one now means that the key is used for another request.
        status: status of the answer; None while the request is in progress.
        headers: headers of the answer.
        body: body of the answer.
    """

    fingerprint: str
    status: int | None
    headers: dict[str, str]
    body: bytes


class IdempotencyKeys(Repository):
    """Repository of answers, by scope (client and operation) and the client's key."""

    @writing_again
    def start(self, scope: str, key: str, fingerprint: str) -> Remembered | None:
        """Return the earlier request with this key; None: continue, then call :meth:`finish` or :meth:`abandon`."""
        here = (_ANSWER.scope == scope, _ANSWER.key == key)
        row = self._connection.execute(sa.select(tables.idempotency).where(*here)).first()
        now = self._now()
        if row is not None:
            age_s = (now - row.at).total_seconds()
            if age_s < (ABANDONED_S if row.status is None else ANSWER_KEPT_S):
                return Remembered(row.fingerprint, row.status, dict(row.headers), bytes(row.body))
            self._connection.execute(sa.delete(tables.idempotency).where(*here))
        values = {"scope": scope, "key": key, "fingerprint": fingerprint, "status": None}
        self._connection.execute(sa.insert(tables.idempotency).values(**values, headers={}, body=b"", at=now))
        return None

    @writing
    def finish(
        self, scope: str, key: str, status: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        """Store the answer, unless it is larger than :data:`ANSWER_BYTES_MAX`."""
        if len(body) > ANSWER_BYTES_MAX:
            self.abandon(scope, key)
            return
        query = sa.update(tables.idempotency).where(_ANSWER.scope == scope, _ANSWER.key == key)
        self._connection.execute(
            query.values(status=status, body=body, headers=headers or {}, at=self._now())
        )

    @writing
    def abandon(self, scope: str, key: str) -> None:
        """Release a key whose request changed nothing."""
        here = (_ANSWER.scope == scope, _ANSWER.key == key)
        self._connection.execute(sa.delete(tables.idempotency).where(*here))

    @writing
    def expire(self) -> int:
        """Remove answers older than :data:`ANSWER_KEPT_S`; return their number."""
        oldest = self._now() - timedelta(seconds=ANSWER_KEPT_S)
        return self._connection.execute(sa.delete(tables.idempotency).where(_ANSWER.at < oldest)).rowcount

    @reading
    def count(self) -> int:
        """Return the number of stored answers."""
        return self._connection.execute(
            sa.select(sa.func.count()).select_from(tables.idempotency)
        ).scalar_one()
