"""All valid secrets in memory, read again from the store every few seconds.

A caller with a valid secret therefore never waits for the database behind callers who guess, and keeps working while
the database is unavailable. A revocation works at once at the daemon that receives it, whatever the database does, and
within :data:`FRESH_S` at other daemons whose database answers.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from protocol.errors import DatabaseError
from sender.store.records.access import Credential, Session, Token
from sender.store.repositories.credentials import hash_secret
from sender.store.store import Store

FRESH_S: Final = 3.0
"""Age at which a request waits for newer secrets. With the interval of the checks of open streams, a revocation at
another daemon works within 5 s."""
_RELOAD_S: Final = 1.5
"""Age at which newer secrets are read in the background."""
_RELOAD_WAIT_S: Final = 1.0
"""A slow database delays requests by no more than this."""
STALE_S: Final = 900.0
"""Lifetime of secrets while the database is unavailable, so that operators can watch the repair."""
_REVOKED_MAX: Final = 10_000
"""Revoked ids that are remembered, in case the database learns of them later; the first is forgotten first."""


class KnownSecrets:
    """The valid secrets of a daemon.

    Secrets are compared by their SHA-256, as keys of a table, so the time of a lookup reveals nothing about a secret of
    256 random bits.
    """

    def __init__(self, store: Store, now: Callable[[], float] = time.monotonic) -> None:
        """Read secrets from ``store``; ``now`` returns monotonic seconds."""
        self._store = store
        self._now = now
        self._known: dict[str, Credential] = {}
        self._loaded_at = -float("inf")
        self._loading: asyncio.Task[None] | None = None
        self._revoked: OrderedDict[str, None] = OrderedDict()

    async def get(self, secret: str) -> Credential | None:
        """Return the credential of a secret, or None if it isn't among those known.

        Raises:
            DatabaseError: no secrets are known, since the database is unavailable.
        """
        await self._refresh()
        return self.valid(self._known.get(hash_secret(secret)))

    async def look_up(self, secret: str) -> Credential | None:
        """Return the credential of a secret that another daemon has issued just now, or None.

        Raises:
            DatabaseError: the database is unavailable.
        """
        key = hash_secret(secret)
        credential = self.valid(await self._store.run(self._store.credentials.find, key))
        if credential is not None:
            self._known[key] = credential
        return credential

    def add_token(self, token: Token, secret: str) -> None:
        """Remember a new token."""
        self._known[hash_secret(secret)] = Credential(token, None)

    def add_session(self, session: Session, token: Token) -> None:
        """Remember a new session."""
        self._known[session.secret_hash] = Credential(token, session)

    def revoke(self, revoked_id: str) -> None:
        """Refuse a token and its sessions, or one session, from now on."""
        self._revoked[revoked_id] = None
        while len(self._revoked) > _REVOKED_MAX:
            self._revoked.popitem(last=False)
        self._known = {key: found for key, found in self._known.items() if self.valid(found)}

    def valid(self, credential: Credential | None) -> Credential | None:
        """Return a credential unless it has expired or was revoked."""
        if credential is None or not credential.valid(datetime.now(UTC)):
            return None
        session_id = None if credential.session is None else credential.session.session_id
        if credential.token.token_id in self._revoked or session_id in self._revoked:
            return None
        return credential

    async def _refresh(self) -> None:
        """Read newer secrets, in the background if the known ones are recent enough."""
        age_s = self._now() - self._loaded_at
        if age_s < _RELOAD_S:
            return
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._load())
            self._loading.add_done_callback(self._loaded)
        if age_s < FRESH_S:
            return
        if age_s > STALE_S:
            await asyncio.shield(self._loading)
        elif (
            self._store.problem is None
        ):  # otherwise each request would wait for a database that doesn't answer
            await asyncio.wait({self._loading}, timeout=_RELOAD_WAIT_S)

    async def _load(self) -> None:
        started_at = self._now()
        self._known = await self._store.run(self._store.credentials.all)
        self._loaded_at = started_at

    def _loaded(self, task: asyncio.Task[None]) -> None:
        self._loading = None
        if not task.cancelled() and not isinstance(task.exception(), DatabaseError | None):
            task.result()
