"""Notify systemd of the daemon's state: ready, status, alive, stopping.

The protocol is a datagram of ``KEY=VALUE`` lines to the socket in ``$NOTIFY_SOCKET``, sd_notify(3). Without that
variable all functions do nothing, so the daemon doesn't depend on how it was started.
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
"""A message that systemd doesn't read within this time is dropped."""
STATUS_CHARS_MAX = 200
RECHECK_SHARE = 0.1
"""Share of the watchdog's time after which a stuck daemon is checked again: one that recovers isn't killed."""

log = structlog.get_logger()


class SystemdNotifier:
    """A sender of notifications.

    Args:
        address: path of a Unix datagram socket, ``@NAME`` for an abstract one; None: send nothing.
    """

    def __init__(self, address: str | None) -> None:
        usable = address is not None and address[:1] in (
            "/",
            "@",
        )  # vsock is for virtual machines' own systemd
        self._address = address if usable else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return a notifier of the systemd that started this process."""
        return cls(environment.get("NOTIFY_SOCKET") or None)

    @property
    def present(self) -> bool:
        """Return whether systemd listens."""
        return self._address is not None

    def ready(self, status: str) -> bool:
        """Report that start-up is complete: units ordered after this one may start."""
        return self._send(f"READY=1\nSTATUS={_one_line(status)}", SEND_TIMEOUT_S)

    def status(self, text: str) -> bool:
        """Set the text that ``systemctl status`` shows."""
        return self._send(f"STATUS={_one_line(text)}", 0)

    def stopping(self, status: str = "stopping") -> bool:
        """Report that the daemon is stopping."""
        return self._send(f"STOPPING=1\nSTATUS={_one_line(status)}", SEND_TIMEOUT_S)

    def extend_timeout(self, seconds: float) -> bool:
        """Request ``seconds`` from now for the start: a large database is checked and migrated."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}", SEND_TIMEOUT_S)

    def alive(self) -> bool:
        """Report that the daemon is alive; never waits."""
        return self._send("WATCHDOG=1", 0)

    def _send(self, message: str, timeout_s: float) -> bool:
        """Send a message; return False if that failed, which is no error of the daemon."""
        if self._address is None:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_s)
            sock.sendto(message.encode(), address)
            return True
        return False


def _one_line(text: str) -> str:
    """Return ``text`` in one line: a line break would start another assignment."""
    return " ".join(text.split())[:STATUS_CHARS_MAX]


class Watchdog:
    """A task that reports to systemd that the daemon is alive, but only while its work progresses.

    systemd aborts (SIGABRT, which prints the stack of every thread) and restarts a daemon whose watchdog was silent for
    ``WatchdogSec=``. Casts resume after a restart, so a short outage is better than a daemon that hangs.

    Args:
        check: returns None if all is well, or a description of the stuck part, for the log. It must not wait. It runs
            in the event loop, so a blocked loop is noticed as well.
        describe: returns the text for ``systemctl status``, at each tick; the first was sent with ``ready``.
        notifier: sends the notifications.
        environment: in it, systemd sets the watchdog's interval.
        sleep: waits.
    """

    def __init__(
        self,
        check: Callable[[], str | None],
        describe: Callable[[], str],
        *,
        notifier: SystemdNotifier | None = None,
        environment: Mapping[str, str] = os.environ,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._check = check
        self._describe = describe
        self._notifier = notifier or SystemdNotifier.from_environment(environment)
        self._sleep = sleep
        self.timeout_s = _watchdog_s(environment) if self._notifier.present else None

    async def run(self) -> None:
        """Report until cancelled, twice per interval; return at once if systemd has set none."""
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
            if text != shown and self._notifier.status(text):
                shown = text
            reported = problem is None and self._notifier.alive()
            await self._sleep(self.timeout_s * (0.5 if reported else RECHECK_SHARE))


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Return the longest time between reports, None if systemd doesn't watch this process: sd_watchdog_enabled(3)."""
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
        process = int(environment.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and process == os.getpid() else None
