"""Live state as server-sent events: the live feed's stream as an answer, ended with its token's time and the daemon.

The feed encodes an event once for all who watch, and keeps little for who doesn't read; here are the connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from protocol.errors import DatabaseError

STREAMS_MAX: Final = 256
"""Watchers at once: a wall of screens and every operator's tabs."""
COMMENT_S: Final = 15.0
"""Proxies end what is silent for a minute, and a lost connection is noticed only by writing to it. The token is looked
at as often: one that was deleted sees no more than this."""
_RETRY: Final = b"retry: 2000\n\n"
_COMMENT: Final = b": still here\n\n"
EVENTS_TYPE: Final = "text/event-stream"


def event_stream(
    events: AsyncIterator[bytes],
    *,
    stopping: asyncio.Event,
    still_may: Callable[[], Awaitable[object]],
    on_end: Callable[[], None],
) -> StreamingResponse:
    """``events`` as an answer that lasts until the client, its token or the daemon ends.

    Args:
        events: encoded already.
        stopping: set when the daemon ends.
        still_may: raises HTTPException when the token isn't good any more.
        on_end: called once, when the stream has ended.
    """
    return _EventResponse(_stream(events, stopping, still_may), on_end)


class _EventResponse(StreamingResponse):
    """A stream that tells its end, even if it never began."""

    def __init__(self, content: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        # X-Accel-Buffering: nginx would gather events into pages.
        super().__init__(content, media_type=EVENTS_TYPE, headers={"X-Accel-Buffering": "no"})
        self._content = content
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
            close = getattr(self._content, "aclose", None)
            if close is not None:
                await close()


async def _stream(
    events: AsyncIterator[bytes], stopping: asyncio.Event, still_may: Callable[[], Awaitable[object]]
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    comment_at = loop.time() + COMMENT_S
    stop = asyncio.ensure_future(stopping.wait())
    following: asyncio.Future[bytes] | None = None
    try:
        yield _RETRY
        while not stop.done():
            if following is None:
                following = asyncio.ensure_future(_next(events))
            await asyncio.wait(
                (following, stop),
                timeout=max(0.0, comment_at - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if loop.time() >= comment_at:
                comment_at = loop.time() + COMMENT_S
                try:
                    await still_may()
                except HTTPException:
                    return
                except DatabaseError:
                    pass  # nobody can say: it was good when it began
                yield _COMMENT
            if following.done():
                event = following.result()
                following = None
                if not event:
                    return
                yield event
    finally:
        for task in (stop, following):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await task
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _next(events: AsyncIterator[bytes]) -> bytes:
    """The next event; empty at the end."""
    return await anext(events, b"")
