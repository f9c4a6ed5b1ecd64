"""uvicorn for the daemon's API, on a socket that was bound before; signals are left to the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
from fastapi import FastAPI

from protocol.constants import RECEIVER_COUNT_MAX

_CONNECTIONS_MAX: Final = 4 * RECEIVER_COUNT_MAX
"""Agents that wait for a cast in several rooms, watchers, and clients; more are answered 503."""
_KEEP_ALIVE_S: Final = 30
"""Longer than an agent's or Prometheus's usual pause, so that it needn't connect anew each time."""
_SHUTDOWN_S: Final = 3
_HEADER_BYTES_MAX: Final = 32 << 10


class ApiServer(uvicorn.Server):
    """The API on one socket."""

    def __init__(self, application: FastAPI, listener: socket.socket) -> None:
        """Serve ``application`` on ``listener``, which is taken over.

        TLS will be an argument of uvicorn's here, or a proxy's: nothing else knows which it is.

        Args:
            application: of :func:`sender.api.application.create_application`.
            listener: bound; it needn't listen yet.
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
                limit_concurrency=_CONNECTIONS_MAX,
                backlog=RECEIVER_COUNT_MAX,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_SHUTDOWN_S,
                h11_max_incomplete_event_size=_HEADER_BYTES_MAX,
            )
        )
        # Accepted sockets inherit it. asyncio sets it only on sockets that were made with IPPROTO_TCP by name; without
        # it a small answer on a kept connection takes 48 ms instead of 5, for the peer's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener = listener
        self._stopping: asyncio.Event = application.state.stopping
        logging.getLogger("uvicorn.error").addFilter(_is_news)

    async def run_until_stopped(self) -> None:
        """Serve until :meth:`stop`; running requests are finished first."""
        try:
            await self.serve(sockets=[self._listener])
        finally:
            self._listener.close()

    def stop(self) -> None:
        """Begin to end: watchers' streams and waiting check-ins end at once, so that this takes tenths of a second."""
        self._stopping.set()
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave SIGINT and SIGTERM alone: the daemon has its own way to end."""
        yield


class AnswerCutError(Exception):
    """An answer that had begun can't be finished, and the client must see that; it was logged where it happened."""


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], AnswerCutError))
