"""uvicorn for one application on a bound socket, behind limits of connections; the program handles signals itself."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import dataclasses
import errno
import functools
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import uvicorn
from fastapi import FastAPI

from protocol.constants import RECEIVER_COUNT_MAX
from protocol.errors import DiskcastError
from sender.addresses import IpNetwork
from sender.http.connections import Connection, ConnectionTable
from sender.http.descriptor_limit import descriptor_limit
from sender.http.protocol import HttpProtocol
from sender.http.rejections import Api, Rejection, Rejections

_FIRST_BYTE_S: Final = 10.0
"""Time for the first byte; until then a connection is a descriptor and a timer, without TLS and HTTP."""
_HANDSHAKE_S: Final = 10.0
"""Time for a TLS handshake: two round trips, and a thousand machines that were switched on together."""
_TLS_BUFFER_BYTES: Final = 16 << 10
"""Size of a TLS record (RFC 8446, 5.1). asyncio has a buffer of 256 KiB for each connection, half a gigabyte for all
of a cast."""
_ACCEPTED_AT_ONCE: Final = 128
"""Connections accepted before other work of the event loop gets its turn."""
_ACCEPT_RETRY_S: Final = 0.1
_DESCRIPTORS_RESERVED: Final = 256
"""For the image, the database, other sockets and the journal."""
_DESCRIPTORS_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class ResponseAbortedError(Exception):
    """A started response can't be completed: the connection is cut, so that the client notices. The cause is logged."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of a server; :mod:`sender.http.protocol` has those of a single request.

    Attributes:
        api: label of the count of rejections.
        connections_max: limit of all connections; half of it for each source address.
        keep_alive_s: time that a connection may wait for its next request.
        shutdown_s: time for running requests to finish when the server stops.
        trusted_proxies: addresses that speak for many clients and may use all connections.
    """

    api: Api
    connections_max: int
    keep_alive_s: int
    shutdown_s: int
    trusted_proxies: tuple[IpNetwork, ...] = ()


class HttpServer(uvicorn.Server):
    """An HTTP server inside a running event loop.

    It accepts connections itself: limits must hold before a TLS handshake, which uvicorn and asyncio would start first.

    Attributes:
        connections: the open connections, and the count of rejected ones.
    """

    def __init__(
        self,
        application: FastAPI,
        listener: socket.socket,
        *,
        tls: ssl.SSLContext | None,
        limits: ServerLimits,
    ) -> None:
        """Serve ``application`` on ``listener``, which this server closes.

        Args:
            application: handles requests.
            listener: bound, but not necessarily listening yet.
            tls: certificate and key; None for plain HTTP.
            limits: limits of connections and time.
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
                timeout_keep_alive=limits.keep_alive_s,
                timeout_graceful_shutdown=limits.shutdown_s,
            )
        )
        # Accepted sockets inherit it. Without it a small response on a kept connection takes 48 ms instead of 5,
        # because of the peer's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener = listener
        self._tls = tls
        if tls is not None:
            asyncio.sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES
        self._silent: dict[Connection, tuple[socket.socket, asyncio.TimerHandle]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._accept_retry: asyncio.TimerHandle | None = None
        affordable = max(1, descriptor_limit() - _DESCRIPTORS_RESERVED)
        self.connections = ConnectionTable(
            min(limits.connections_max, affordable), Rejections(limits.api), limits.trusted_proxies
        )
        logging.getLogger("uvicorn.error").addFilter(_is_not_logged_elsewhere)

    async def run_until_stopped(self) -> None:
        """Serve until :meth:`stop`; running requests finish first."""
        try:
            await self.serve(sockets=[self._listener])
        finally:
            self._stop_accepting()
            self._listener.close()

    def stop(self) -> None:
        """Start to stop; :meth:`run_until_stopped` returns within a few tenths of a second."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await self.lifespan.startup()
        self.servers = []
        self._listener.setblocking(False)
        self._listener.listen(RECEIVER_COUNT_MAX)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, and wait for running requests."""
        self._stop_accepting()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave SIGINT and SIGTERM to the program."""
        yield

    # -- connections ------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """Accept waiting connections."""
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _DESCRIPTORS_EXHAUSTED:
                    raise
                self.connections.evict_one()
                self._pause_accepting()
                return
            self._connect(sock, str(address[0]))

    def _connect(self, accepted: socket.socket, address: str) -> None:
        connection = self.connections.open(address)
        if connection is None:
            accepted.close()
            return
        accepted.setblocking(False)
        loop = asyncio.get_running_loop()
        connection.close_now = functools.partial(self._drop_silent, connection)
        deadline = loop.call_later(_FIRST_BYTE_S, self._first_byte_late, connection)
        self._silent[connection] = (accepted, deadline)
        loop.add_reader(accepted, self._first_byte_arrived, connection)

    def _first_byte_arrived(self, connection: Connection) -> None:
        """Start TLS or HTTP on a connection that was silent so far."""
        accepted = self._forget_silent(connection)
        task = asyncio.ensure_future(self._open(accepted, connection))
        connection.close_now = task.cancel
        self._connecting.add(task)
        task.add_done_callback(functools.partial(self._opened, accepted, connection))

    def _first_byte_late(self, connection: Connection) -> None:
        connection.count(Rejection.HEAD_TIMEOUT if self._tls is None else Rejection.HANDSHAKE)
        self._drop_silent(connection)

    def _drop_silent(self, connection: Connection) -> None:
        self._forget_silent(connection).close()
        connection.closed()

    def _forget_silent(self, connection: Connection) -> socket.socket:
        accepted, deadline = self._silent.pop(connection)
        deadline.cancel()
        asyncio.get_running_loop().remove_reader(accepted)
        return accepted

    async def _open(self, accepted: socket.socket, connection: Connection) -> None:
        """Shake hands, and pass the connection to its protocol."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: HttpProtocol(self.config, self.server_state, connection),
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE_S,
            )
        except OSError:
            connection.count(Rejection.HANDSHAKE)
            raise

    def _opened(self, accepted: socket.socket, connection: Connection, task: asyncio.Task[None]) -> None:
        """Forget a connection that was closed before its protocol got it, possibly before the task ran at all."""
        self._connecting.discard(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            accepted.close()
            connection.closed()
        if error is not None and not isinstance(error, OSError):
            raise error

    def _pause_accepting(self) -> None:
        """Accept nothing until closed connections have freed their descriptors."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._accept_retry = loop.call_later(_ACCEPT_RETRY_S, loop.add_reader, self._listener, self._accept)

    def _stop_accepting(self) -> None:
        if self._accept_retry is not None:
            self._accept_retry.cancel()
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener)
        for connection in list(self._silent):
            self._drop_silent(connection)
        for task in self._connecting:
            task.cancel()


def _is_not_logged_elsewhere(record: logging.LogRecord) -> bool:
    """Return whether a record of uvicorn's log isn't logged by diskcast itself."""
    return not (record.exc_info and isinstance(record.exc_info[1], (DiskcastError, ResponseAbortedError)))
