"""Creations that may be asked for twice: a client whose connection broke repeats them with the same key and gets the
first answer, not a second cast.
"""

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
    """Answers of creations by the one who asked and the key; the store keeps them, so that a restart forgets none."""

    def __init__(self, store: Store) -> None:
        """Keep answers in ``store``."""
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
        answer: Callable[[], Awaitable[Response]],
    ) -> Response:
        """The answer of the first request with ``key``, asked for now or earlier.

        Only a success is kept: what was refused can be asked for again with the same key.

        Args:
            key: the client's.
            scope: whose keys these are.
            operation: method and path.
            body: of this request; another one with the same key is a client's error.
            replay: give the kept answer again; otherwise it held a secret, wasn't kept, and the repetition is refused.
            answer: makes the first one.

        Raises:
            HTTPException: 422 for another request with a key that is used, 409 if another daemon is at it now.
        """
        if not _KEY.fullmatch(key):
            raise RequestValidationError(
                [
                    {
                        "type": "value_error",
                        "loc": ("header", KEY_HEADER),
                        "msg": "1 to 64 printable ASCII characters expected",
                    }
                ]
            )
        # Two of one client at once: the second waits for the first; tables of locks end with their requests.
        lock = self._running.setdefault((scope, key), asyncio.Lock())
        try:
            async with lock:
                return await self._once(key, scope, operation, body, replay=replay, answer=answer)
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
        answer: Callable[[], Awaitable[Response]],
    ) -> Response:
        fingerprint = hashlib.sha256(f"{operation}\n".encode() + body).hexdigest()
        store = self._store
        earlier = await store.run(store.idempotency.begin, scope, key, fingerprint)
        if earlier is not None:
            return _again(earlier, fingerprint, replay=replay)
        try:
            response = await answer()
        except BaseException:
            # Refused or failed: nothing was created, and the key is free again. If even this can't be written the
            # store frees the key by itself after a while.
            with contextlib.suppress(DatabaseError):
                await asyncio.shield(store.run(store.idempotency.abandon, scope, key))
            raise
        headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
        kept = bytes(response.body) if replay else b""
        try:
            await store.run(store.idempotency.finish, scope, key, response.status_code, kept, headers)
        except DatabaseError as error:
            # It's done, and the client shall know. A repetition is refused until the store frees the key.
            _log.warning("answer_not_kept", reason=str(error))
        return response


def _again(earlier: Remembered, fingerprint: str, *, replay: bool) -> Response:
    if earlier.fingerprint != fingerprint:
        raise HTTPException(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"the {KEY_HEADER} was used for another request: take a new one for each creation",
        )
    if earlier.status is None:
        raise HTTPException(
            HTTPStatus.CONFLICT,
            "the same request is being worked on, or was cut off a moment ago: ask again in a minute",
            {"Retry-After": str(int(ABANDONED_S))},
        )
    if not replay:
        raise HTTPException(
            HTTPStatus.CONFLICT,
            "this was done already, and the secret in its answer is kept nowhere: create another",
        )
    return Response(earlier.body, earlier.status, {**earlier.headers, REPLAYED_HEADER: "true"})
