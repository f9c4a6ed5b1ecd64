"""Server-sent events: a subscription to the live feed as a response that ends with its token or the daemon.

The feed encodes each event once for all subscribers and bounds their queues; this module serves the connections.
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
"""Streams at the same time: a wall of screens and every operator's tabs."""
COMMENT_S: Final = 15.0
"""Interval of keep-alive comments: proxies close a connection after a minute of silence, and a lost connection is only
noticed on writing."""
_CHECK_S: Final = 2.0
"""Interval of the checks of the client's token: with the age of known secrets, a stream ends within 5 s of a revocation
at any daemon."""
_RETRY: Final = b"retry: 2000\n\n"
_COMMENT: Final = b": still here\n\n"
EVENTS_TYPE: Final = "text/event-stream"


def event_stream(
    events: AsyncIterator[bytes],
    *,
    stopping: asyncio.Event,
    authorise: Callable[[], Awaitable[object]],
    on_end: Callable[[], None],
) -> StreamingResponse:
    """Return a response that streams ``events`` until the client disconnects, its token expires or the daemon stops.

    Args:
        events: encoded events.
        stopping: set when the daemon stops.
        authorise: raises HTTPException when the token is no longer valid.
        on_end: called once, when the stream has ended.
    """
    return _EventResponse(_stream(events, stopping, authorise), on_end)


class _EventResponse(StreamingResponse):
    """A streaming response that reports its end, even if it never started."""

    def __init__(self, content: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        # X-Accel-Buffering: nginx would buffer events.
        super().__init__(content, media_type=EVENTS_TYPE, headers={"X-Accel-Buffering": "no"})
        self._content = content
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
            close = getattr(self._content, "aclose", None)
            if close is not None:
                await close()


async def _stream(
    events: AsyncIterator[bytes], stopping: asyncio.Event, authorise: Callable[[], Awaitable[object]]
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    comment_at, check_at = loop.time() + COMMENT_S, loop.time() + _CHECK_S
    stop = asyncio.ensure_future(stopping.wait())
    following: asyncio.Future[bytes] | None = None
    try:
        yield _RETRY
        while not stop.done():
            if following is None:
                following = asyncio.ensure_future(_next(events))
            await asyncio.wait(
                (following, stop),
                timeout=max(0.0, min(comment_at, check_at) - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if loop.time() >= check_at:
                check_at = loop.time() + _CHECK_S
                try:
                    await authorise()
                except HTTPException:
                    return
                except DatabaseError:
                    pass  # keep the stream: the token was valid when it started
            if loop.time() >= comment_at:
                comment_at = loop.time() + COMMENT_S
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
    """Return the next event, or nothing at the end."""
    return await anext(events, b"")
