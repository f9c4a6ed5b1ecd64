"""Idempotent creations: a client that retries with the same key gets the first response, not a second cast."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from protocol.errors import DatabaseError
from sender.store.repositories.idempotency import ABANDONED_S, Remembered

if TYPE_CHECKING:
    from sender.store.store import Store

KEY_HEADER: Final = "Idempotency-Key"
KEY_PATTERN: Final = "^[!-~](?:[ -~]{0,62}[!-~])?$"
REPLAYED_HEADER: Final = "Idempotency-Replayed"
_KEPT_HEADERS: Final = ("content-type", "location")
_log = structlog.get_logger("diskcast.api")
_KEY: Final = re.compile(KEY_PATTERN)


class IdempotentResponses:
    """Responses to creations by client and key, kept in the store so that they survive a restart."""

    def __init__(self, store: Store) -> None:
        """Keep responses in ``store``."""
        self._store = store
        self._running: dict[tuple[str, str], asyncio.Lock] = {}

    async def once(
        self,
        key: str,
        scope: str,
        *,
        operation: str,
        body: bytes,
        replay: bool,
        respond: Callable[[], Awaitable[Response]],
    ) -> Response:
        """Return the response to the first request with ``key``, now or earlier.

        Only a success is stored: a refused request can be repeated with the same key.

        Args:
            key: the client's idempotency key.
            scope: the client; keys of different clients don't collide.
            operation: method and path.
            body: must be the same in each request with this key.
            replay: return the stored response; False if it held a secret, so that it isn't stored and a repetition is
                refused.
            respond: returns the first response.

        Raises:
            HTTPException: 422 if the key was used for another request, 409 if another daemon is processing it now.
        """
        if not _KEY.fullmatch(key):
            raise RequestValidationError(
                [
                    {
                        "type": "value_error",
                        "loc": ("header", KEY_HEADER),
                        "msg": "expected 1 to 64 printable ASCII characters",
                    }
                ]
            )
        # Of two simultaneous requests with one key the second waits for the first. The lock goes with the last of them.
        lock = self._running.setdefault((scope, key), asyncio.Lock())
        try:
            async with lock:
                return await self._once(key, scope, operation, body, replay=replay, respond=respond)
        finally:
            if not lock.locked() and self._running.get((scope, key)) is lock:
                del self._running[(scope, key)]

    async def _once(
        self,
        key: str,
        scope: str,
        operation: str,
        body: bytes,
        *,
        replay: bool,
        respond: Callable[[], Awaitable[Response]],
    ) -> Response:
        fingerprint = hashlib.sha256(f"{operation}\n".encode() + body).hexdigest()
        store = self._store
        earlier = await store.run(store.idempotency.start, scope, key, fingerprint)
        if earlier is not None:
            return _repeated(earlier, fingerprint, replay=replay)
        try:
            response = await respond()
        except BaseException:
            # Refused or failed: nothing was created, so free the key. While the database is unavailable, the key
            # stays: the store frees it after a timeout.
            with contextlib.suppress(DatabaseError):
                await asyncio.shield(store.run(store.idempotency.abandon, scope, key))
            raise
        headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        kept = bytes(response.body) if replay else b""
        try:
            await store.run(store.idempotency.finish, scope, key, response.status_code, kept, headers)
        except DatabaseError as error:
            # The creation succeeded, so return its response. A repetition is refused until the store frees the key.
            _log.warning("answer_not_kept", reason=str(error))
        return response


def _repeated(earlier: Remembered, fingerprint: str, *, replay: bool) -> Response:
    if earlier.fingerprint != fingerprint:
        raise HTTPException(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"the {KEY_HEADER} was used for another request: use a new key for each creation",
        )
    if earlier.status is None:
        raise HTTPException(
            HTTPStatus.CONFLICT,
            "the same request is still being processed, or was interrupted: retry in a minute",
            {"Retry-After": str(int(ABANDONED_S))},
        )
    if not replay:
        raise HTTPException(
            HTTPStatus.CONFLICT,
            "this request succeeded before, and the secret in its response isn't stored: create another one",
        )
    return Response(earlier.body, earlier.status, {**earlier.headers, REPLAYED_HEADER: "true"})
