from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from sender.systemd_notify import SystemdNotifier, Watchdog
from tests.support.network.lab import LIMIT_S


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """systemd's socket and the value of ``$NOTIFY_SOCKET``."""
    path = str(tmp_path / "notify")
    name = path if request.param == "path" else f"@diskcast-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(LIMIT_S)
        sock.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        yield sock, name


def _heard(sock: socket.socket) -> list[str]:
    sock.setblocking(False)
    messages = []
    while True:
        try:
            messages.append(sock.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_systemd_hears_ready_status_and_stopping(listener: tuple[socket.socket, str]) -> None:
    sock, name = listener
    notifier = SystemdNotifier.from_environment({"NOTIFY_SOCKET": name})
    assert notifier.present
    assert notifier.ready("listening on 127.0.0.1:7400")
    assert notifier.status("2 casts\nREADY=0")
    assert notifier.extend_timeout(2.5)
    assert notifier.stopping()
    assert _heard(sock) == [
        "READY=1\nSTATUS=listening on 127.0.0.1:7400",
        "STATUS=2 casts READY=0",
        "EXTEND_TIMEOUT_USEC=2500000",
        "STOPPING=1\nSTATUS=stopping",
    ]


@pytest.mark.parametrize(
    "address", [None, "", "relative", "vsock:2:1", "/nowhere/notify", "@nobody-listens-here"]
)
def test_the_daemon_works_without_systemd(address: str | None) -> None:
    notifier = SystemdNotifier.from_environment({} if address is None else {"NOTIFY_SOCKET": address})
    assert not notifier.ready("x")
    assert not notifier.alive()


def _watched(name: str, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid()), **more}


class _Rounds:
    """A clock that counts the time slept and stops after some rounds."""

    def __init__(self, count: int) -> None:
        self.slept_s: list[float] = []
        self._count = count

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        if len(self.slept_s) == self._count:
            raise asyncio.CancelledError


def _run(watchdog: Watchdog) -> None:
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watchdog.run())


def test_a_working_daemon_reports_twice_per_interval(listener: tuple[socket.socket, str]) -> None:
    sock, name = listener
    rounds = _Rounds(5)
    _run(Watchdog(lambda: None, lambda: "serving", environment=_watched(name), sleep=rounds.sleep))
    assert _heard(sock) == ["WATCHDOG=1"] * 5
    assert rounds.slept_s == [2.0] * 5


def test_a_stuck_daemon_does_not_report_and_logs_the_cause(listener: tuple[socket.socket, str]) -> None:
    sock, name = listener
    found = iter([None, "cast 1a2b3c4d sent nothing for 60 s", "cast 1a2b3c4d sent nothing for 60 s", None])
    rounds = _Rounds(4)
    with structlog.testing.capture_logs() as logged:
        _run(Watchdog(lambda: next(found), lambda: "serving", environment=_watched(name), sleep=rounds.sleep))
    assert _heard(sock) == [
        "WATCHDOG=1",
        "STATUS=stuck: cast 1a2b3c4d sent nothing for 60 s",
        "STATUS=serving",
        "WATCHDOG=1",
    ]
    assert rounds.slept_s == pytest.approx([2.0, 0.4, 0.4, 2.0])
    assert [line["event"] for line in logged] == ["watchdog_stuck", "watchdog_recovered"]


def test_a_stuck_event_loop_does_not_report(listener: tuple[socket.socket, str]) -> None:
    sock, name = listener

    async def main() -> list[str]:
        task = asyncio.create_task(
            Watchdog(lambda: None, lambda: "serving", environment=_watched(name, WATCHDOG_USEC="1000")).run()
        )
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, sock.recv, 4096)  # it ticks
        _heard(sock)
        sock.setblocking(True)
        sock.settimeout(0.05)  # fifty times the watchdog's time; the loop does nothing else meanwhile
        with pytest.raises(TimeoutError):
            sock.recv(4096)
        sock.settimeout(LIMIT_S)
        await loop.run_in_executor(None, sock.recv, 4096)  # and again when the loop is free
        task.cancel()
        return _heard(sock)

    asyncio.run(main())


@pytest.mark.parametrize(
    "change",
    [
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "x"},
        {"WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": ""},
    ],
)
def test_without_a_watchdog_nothing_is_reported(change: dict[str, str]) -> None:
    watchdog = Watchdog(lambda: None, lambda: "serving", environment=_watched("@x", **change))
    assert watchdog.timeout_s is None
    asyncio.run(watchdog.run())


def test_a_separate_process_is_heard(listener: tuple[socket.socket, str]) -> None:
    """systemd sets the variables in the environment."""
    sock, name = listener
    code = "from sender.systemd_notify import SystemdNotifier; SystemdNotifier.from_environment().ready('up')"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"NOTIFY_SOCKET": name}, check=True)
    assert sock.recv(4096) == b"READY=1\nSTATUS=up"
