"""The daemon's API on its socket."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from fastapi import FastAPI

from protocol.constants import RECEIVER_COUNT_MAX
from sender.http_server import HttpServer

_CONNECTIONS_MAX: Final = 4 * RECEIVER_COUNT_MAX
"""Agents that wait for a cast in several rooms, watchers, and clients; more are answered 503."""
_KEEP_ALIVE_S: Final = 30
"""Longer than an agent's or Prometheus's usual pause, so that it needn't connect anew each time."""
_SHUTDOWN_S: Final = 3


class ApiServer(HttpServer):
    """Serves what :func:`sender.api.application.create_application` makes."""

    def __init__(self, application: FastAPI, listener: socket.socket) -> None:
        """Serve ``application`` on ``listener``, which is taken over."""
        super().__init__(
            application,
            listener,
            connections_max=_CONNECTIONS_MAX,
            keep_alive_s=_KEEP_ALIVE_S,
            shutdown_s=_SHUTDOWN_S,
        )
        self._stopping: asyncio.Event = application.state.stopping

    def stop(self) -> None:
        """Begin to end: watchers' streams and waiting check-ins end at once, so that this takes tenths of a second."""
        self._stopping.set()
        super().stop()
