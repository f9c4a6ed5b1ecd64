"""The daemon's API on its socket."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final

from fastapi import FastAPI

from protocol.constants import RECEIVER_COUNT_MAX
from sender.addresses import IpNetwork
from sender.http.rejections import Api
from sender.http.server import HttpServer, ServerLimits

_CONNECTIONS_MAX: Final = 4 * RECEIVER_COUNT_MAX
"""Waiting agents of several rooms, event streams and clients."""
_KEEP_ALIVE_S: Final = 30
"""Longer than the usual interval of agents and Prometheus, so that they reuse their connection."""
_SHUTDOWN_S: Final = 3


class ApiServer(HttpServer):
    """A server of the application that :func:`sender.api.application.create_application` returns."""

    def __init__(
        self,
        application: FastAPI,
        listener: socket.socket,
        trusted_proxies: tuple[IpNetwork, ...] = (),
        *,
        tls: ssl.SSLContext | None,
    ) -> None:
        """Serve ``application`` on ``listener``, and close it at the end.

        Args:
            application: the API.
            listener: the daemon's address.
            trusted_proxies: addresses that speak for many clients.
            tls: the daemon's certificate; None only on a loopback address.
        """
        super().__init__(
            application,
            listener,
            tls=tls,
            limits=ServerLimits(Api.DAEMON, _CONNECTIONS_MAX, _KEEP_ALIVE_S, _SHUTDOWN_S, trusted_proxies),
        )
        self._stopping: asyncio.Event = application.state.stopping

    def stop(self) -> None:
        """Start to stop: event streams and waiting check-ins end at once, so this takes tenths of a second."""
        self._stopping.set()
        super().stop()
