"""Telling systemd how the daemon is: ready, busy with what, alive, stopping.

The protocol is a datagram of ``KEY=VALUE`` lines to the socket in ``$NOTIFY_SOCKET``, sd_notify(3). Without that
variable everything here does nothing, so that the daemon needn't know how it was started.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Self

import structlog

SEND_TIMEOUT_S = 5.0
"""A service manager that reads nothing for this long isn't told; the daemon's work goes on."""
STATUS_CHARS_MAX = 200
LOOK_AGAIN_SHARE = 0.1
"""Of the watchdog's time: how soon to look again at what is stuck, so that one that recovers isn't killed."""

log = structlog.get_logger()


class ServiceManager:
    """The end of the notification socket.

    Args:
        address: path of a Unix datagram socket, ``@NAME`` for an abstract one; None: nobody listens.
    """

    def __init__(self, address: str | None) -> None:
        usable = address is not None and address[:1] in (
            "/",
            "@",
        )  # vsock is for virtual machines' own systemd
        self._address = address if usable else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The one that started this process."""
        return cls(environment.get("NOTIFY_SOCKET") or None)

    @property
    def present(self) -> bool:
        """Whether somebody listens."""
        return self._address is not None

    def ready(self, status: str) -> bool:
        """Start-up is complete: units ordered after this one may start."""
        return self._send(f"READY=1\nSTATUS={_one_line(status)}", SEND_TIMEOUT_S)

    def status(self, text: str) -> bool:
        """What ``systemctl status`` shows, for people."""
        return self._send(f"STATUS={_one_line(text)}", 0)

    def stopping(self, status: str = "stopping") -> bool:
        """The end has begun."""
        return self._send(f"STOPPING=1\nSTATUS={_one_line(status)}", SEND_TIMEOUT_S)

    def extend_timeout(self, seconds: float) -> bool:
        """The start may take ``seconds`` from now, for a good reason: a large database is checked and migrated."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}", SEND_TIMEOUT_S)

    def alive(self) -> bool:
        """Keep the watchdog quiet for another round; never waits."""
        return self._send("WATCHDOG=1", 0)

    def _send(self, message: str, timeout_s: float) -> bool:
        """Whether it was taken; that it wasn't is never a reason to stop working."""
        if self._address is None:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_s)
            sock.sendto(message.encode(), address)
            return True
        return False


def _one_line(text: str) -> str:
    """A line break would be another assignment."""
    return " ".join(text.split())[:STATUS_CHARS_MAX]


class Watchdog:
    """Tells the service manager that the daemon is alive, but only while its work progresses.

    systemd ends (SIGABRT, which prints where every thread is) and restarts a daemon whose watchdog was silent for
    ``WatchdogSec=``; casts go on after a restart, so a short outage beats a daemon that hangs.

    Args:
        check: None if all is well, or what is stuck, for the log. It must not wait. It runs in the event loop, so that
            a loop that is stuck is noticed without it.
        describe: what the daemon does, for ``systemctl status``: as at the start, it was told with ``ready`` already;
            asked at each tick.
        manager: who is told.
        environment: where systemd says how often it wants to hear.
        sleep: how to wait.
    """

    def __init__(
        self,
        check: Callable[[], str | None],
        describe: Callable[[], str],
        *,
        manager: ServiceManager | None = None,
        environment: Mapping[str, str] = os.environ,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._check = check
        self._describe = describe
        self._manager = manager or ServiceManager.from_environment(environment)
        self._sleep = sleep
        self.timeout_s = _watchdog_s(environment) if self._manager.present else None

    async def run(self) -> None:
        """Tick until cancelled, twice within the time allowed; returns at once if nobody wants to hear."""
        if self.timeout_s is None:
            return
        if not faulthandler.is_enabled():
            faulthandler.enable()
        stuck: str | None = None
        shown = self._describe()
        while True:
            problem = self._check()
            if problem is None and stuck is not None:
                log.warning("watchdog_recovered", was_stuck=stuck)
            elif problem is not None and stuck is None:
                log.error("watchdog_stuck", problem=problem, killed_after_s=self.timeout_s)
            stuck = problem
            text = self._describe() if problem is None else f"stuck: {problem}"
            if text != shown and self._manager.status(text):
                shown = text
            told = problem is None and self._manager.alive()
            await self._sleep(self.timeout_s * (0.5 if told else LOOK_AGAIN_SHARE))


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The time that systemd allows between ticks, None if it doesn't watch this process: sd_watchdog_enabled(3)."""
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
        process = int(environment.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and process == os.getpid() else None
