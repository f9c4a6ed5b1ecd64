"""Tests of the daemon under systemd: ready when it reports so, watchdog ticks while it works, exit on request."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.network.lab import LIMIT_S
from tests.support.network.ports import free_port_range

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "systemd" / "diskcast.service"
_AS_IN_THE_UNIT = """
import ctypes, os, sys
prctl = ctypes.CDLL(None).prctl
os.umask(0o077)                     # UMask=
prctl(38, 1, 0, 0, 0)               # PR_SET_NO_NEW_PRIVS: NoNewPrivileges=
prctl(65, 1, 0, 0, 0)               # PR_SET_MDWE, Linux 6.3: MemoryDenyWriteExecute=
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""The parts of the unit's sandbox that work without systemd."""


class Service:
    """A daemon that was started by a service manager, here this test."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.config = folder / "diskcast.toml"
        self.port, control = free_port_range(2)
        self.config.write_text(
            f'[server]\nname = "caster-1"\nlisten = "127.0.0.1:{self.port}"\nstate_directory = "state"\n'
            f'[network]\ninterface = "lo"\ncontrol_ports = "{control}"\n'
        )
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.socket.settimeout(LIMIT_S)
        command = re.search(r"^ExecStart=/opt/diskcast/bin/diskcast (.*)$", UNIT.read_text(), re.MULTILINE)
        assert command is not None
        arguments = command[1].replace("/etc/diskcast/diskcast.toml", str(self.config)).split()
        environment = os.environ | {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "1000000"}
        self.journal = folder / "journal"
        with self.journal.open("w") as journal:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _AS_IN_THE_UNIT, "-m", "sender", *arguments],
                cwd=ROOT,
                env=environment,
                stderr=journal,
            )

    def heard(self) -> str:
        return self.socket.recv(4096).decode()

    def lines(self) -> list[dict[str, object]]:
        """Return the JSON lines of the journal; other lines are messages for the operator."""
        return [json.loads(line) for line in self.journal.read_text().splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    started = Service(tmp_path_factory.mktemp("service"))
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait()
        started.socket.close()


def test_units_that_wait_for_it_are_started_when_it_can_be_used(service: Service) -> None:
    assert service.heard().startswith("EXTEND_TIMEOUT_USEC="), "a large database may take longer to open"
    assert service.heard().splitlines()[0] == "READY=1"
    answer = httpx.get(f"http://127.0.0.1:{service.port}/healthz", trust_env=False, timeout=LIMIT_S)
    assert answer.status_code == 200


def test_it_ticks_while_it_works(service: Service) -> None:
    assert [service.heard() for _ in range(2)] == ["WATCHDOG=1"] * 2


def test_the_doctor_finds_it_running_and_well(service: Service) -> None:
    command = [
        sys.executable,
        "-m",
        "sender",
        "doctor",
        "--server",
        "--config",
        str(service.config),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    found = {
        line["check"]: line
        for line in map(json.loads, done.stdout.splitlines())
        if line["event"] == "finding"
    }
    assert found[f"port 127.0.0.1:{service.port}"]["detail"] == "in use by a diskcast daemon"
    for check in ("database", "database schema", "change journal", "token file operator-token"):
        assert found[check]["status"] == "ok", found[check]
    assert done.returncode == 0, done.stdout


def test_the_first_token_is_in_a_private_file_and_not_in_the_log(service: Service) -> None:
    path = service.state / "operator-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_text().strip()
    assert secret not in service.journal.read_text()
    url = f"http://127.0.0.1:{service.port}/api/v1/tokens"
    assert httpx.get(url, trust_env=False, timeout=LIMIT_S).status_code == 401
    answer = httpx.get(url, headers={"Authorization": f"Bearer {secret}"}, trust_env=False, timeout=LIMIT_S)
    assert answer.status_code == 200


def test_its_log_is_json_that_names_the_daemon(service: Service) -> None:
    lines = service.lines()
    assert lines
    for line in lines:
        assert {"time", "level", "event", "daemon"} <= line.keys()
        assert line["daemon"] == "caster-1"


def test_it_stops_when_it_is_told(service: Service) -> None:
    service.process.send_signal(signal.SIGTERM)
    # Read first: a queue full of ticks accepts nothing else; systemd always reads it.
    while not (heard := service.heard()).startswith("STOPPING=1"):
        assert heard == "WATCHDOG=1"
    assert service.process.wait(LIMIT_S) == 0
    assert not any(line["level"] == "error" for line in service.lines()), service.journal.read_text()
