"""uvicorn for one application on a bound socket; the program handles signals itself."""

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


class ResponseAbortedError(Exception):
    """A started response can't be completed: the connection is cut, so that the client notices. The cause is logged."""


class HttpServer(uvicorn.Server):
    """An HTTP server inside a running event loop."""

    def __init__(
        self,
        application: FastAPI,
        listener: socket.socket,
        *,
        connections_max: int,
        keep_alive_s: int,
        shutdown_s: int,
    ) -> None:
        """Serve ``application`` on ``listener``, which this server closes.

        TLS would be an argument of uvicorn here, or a proxy's task: nothing else depends on it.

        Args:
            application: handles requests.
            listener: bound, but not necessarily listening yet.
            connections_max: further connections get 503.
            keep_alive_s: time that a connection may wait for its next request.
            shutdown_s: time for running requests to finish when the server stops.
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
        # Accepted sockets inherit it. asyncio sets it only on sockets created with IPPROTO_TCP by name; without it a
        # small response on a kept connection takes 48 ms instead of 5, because of the peer's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener = listener
        logging.getLogger("uvicorn.error").addFilter(_is_not_logged_elsewhere)

    async def run_until_stopped(self) -> None:
        """Serve until :meth:`stop`; running requests finish first."""
        try:
            await self.serve(sockets=[self._listener])
        finally:
            self._listener.close()

    def stop(self) -> None:
        """Start to stop; :meth:`run_until_stopped` returns within a few tenths of a second."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave SIGINT and SIGTERM to the program."""
        yield


def _is_not_logged_elsewhere(record: logging.LogRecord) -> bool:
    """Return whether a record of uvicorn's log isn't logged by diskcast itself."""
    return not (record.exc_info and isinstance(record.exc_info[1], (DiskcastError, ResponseAbortedError)))
