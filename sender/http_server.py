"""uvicorn for one application on a socket that was bound before; signals stay with the program that runs it."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
from fastapi import FastAPI

from protocol.constants import RECEIVER_COUNT_MAX
from protocol.errors import DiskcastError

_HEADER_BYTES_MAX: Final = 32 << 10


class AnswerCutError(Exception):
    """An answer that had begun can't be finished, and the client must see that; it was logged where it happened."""


class HttpServer(uvicorn.Server):
    """A server inside an event loop of ours."""

    def __init__(
        self,
        application: FastAPI,
        listener: socket.socket,
        *,
        connections_max: int,
        keep_alive_s: int,
        shutdown_s: int,
    ) -> None:
        """Serve ``application`` on ``listener``, which is taken over.

        TLS will be an argument of uvicorn's here, or a proxy's: nothing else knows which it is.

        Args:
            application: what answers.
            listener: bound; it needn't listen yet.
            connections_max: more are answered 503.
            keep_alive_s: how long a connection may wait for its next request.
            shutdown_s: what running requests get to end.
        """
        super().__init__(
            uvicorn.Config(
                application,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=connections_max,
                backlog=RECEIVER_COUNT_MAX,
                timeout_keep_alive=keep_alive_s,
                timeout_graceful_shutdown=shutdown_s,
                h11_max_incomplete_event_size=_HEADER_BYTES_MAX,
            )
        )
        # Accepted sockets inherit it. asyncio sets it only on sockets that were made with IPPROTO_TCP by name; without
        # it a small answer on a kept connection takes 48 ms instead of 5, for the peer's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener = listener
        logging.getLogger("uvicorn.error").addFilter(_is_news)

    async def run_until_stopped(self) -> None:
        """Serve until :meth:`stop`; running requests are finished first."""
        try:
            await self.serve(sockets=[self._listener])
        finally:
            self._listener.close()

    def stop(self) -> None:
        """Begin to end; :meth:`run_until_stopped` returns within a few tenths of a second."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave SIGINT and SIGTERM alone: the program has its own way to end."""
        yield


def _is_news(record: logging.LogRecord) -> bool:
    """Whether uvicorn's log says what we don't say ourselves."""
    return not (record.exc_info and isinstance(record.exc_info[1], (DiskcastError, AnswerCutError)))
