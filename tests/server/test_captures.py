"""Captures by a real agent at a real daemon: each is killed, and the link is cut, at random moments of a seeded draw.

Lost if these fail: after a tripped cable the reference image of a whole site is damaged, and nobody notices before the
next cast; or a killed capture changes the disk that it reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sender.imaging.pack import PackOptions, pack_image
from tests.support.network.cuttable_link import CuttableLink
from tests.support.network.lab import wait_until
from tests.support.programs.serving import Daemon, ServiceAgent

BLOCK_BYTES = 1 << 16
KILLS_COUNT = int(os.environ.get("DISKCAST_CAPTURE_KILLS", "2"))
BLOCK_COUNT = 600
DAEMON_BYTES_MAX = 400_000_000
AGENT_BYTES_MAX = 300_000_000
UPLOAD_BYTES_PER_S = 24e6
CAPTURE_S = 1.5
"""Time of a capture of this disk at this rate: a kill falls into it, or between its last steps."""


def peak_bytes(pid: int) -> int:
    """Return the peak resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def write_disk(path: Path, seed: int, block_count: int = BLOCK_COUNT) -> Path:
    pick = random.Random(seed)
    with path.open("wb") as file:
        for index in range(block_count):
            kind = pick.random()
            if kind < 0.6:
                file.write(pick.randbytes(BLOCK_BYTES))
            elif kind < 0.85:
                file.write((b"%08d" % index) * (BLOCK_BYTES // 8))
            else:
                file.write(bytes(BLOCK_BYTES))
    return path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    settings = {"captures": {"rate_ceiling": f"{int(UPLOAD_BYTES_PER_S * 8)}"}}
    with Daemon(tmp_path / "daemon", settings=settings) as daemon:
        yield daemon


class Capturing:
    """A machine whose agent captures its disk."""

    def __init__(self, daemon: Daemon, directory: Path, seed: int, url: str = "") -> None:
        self.daemon = daemon
        self.name = f"pc{seed}"
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.disk = write_disk(directory / f"{self.name}.disk", seed)
        self.digest = hashlib.sha256(self.disk.read_bytes()).hexdigest()
        self.url = url or daemon.url
        self.agent: ServiceAgent | None = None
        self.capture_id = ""

    def start(self) -> None:
        self.agent = ServiceAgent(
            self.directory, self.name, [self.daemon], options=("--allow-capture",), urls=(self.url,)
        )
        self.agent.__enter__()

    def stop(self) -> None:
        if self.agent is not None:
            self.agent.close()
            self.agent = None

    def kill(self) -> None:
        assert self.agent is not None
        assert self.agent.program is not None
        self.agent.program.signal(signal.SIGKILL)
        self.stop()

    def plan(self, image: str) -> None:
        def machine_id() -> str:
            found = [m for m in self.daemon.ask("GET", "/machines")["items"] if m["name"] == self.name]
            return str(found[0]["machine_id"]) if found else ""

        found = wait_until(f"{self.name} is enrolled", machine_id, describe=self.daemon.describe)
        body = {"name": image, "block_bytes": BLOCK_BYTES}
        planned = self.daemon.ask("POST", f"/machines/{found}/capture", body)
        self.capture_id = planned["capture_id"]

    def state(self) -> dict[str, Any]:
        return dict(self.daemon.ask("GET", f"/captures/{self.capture_id}"))

    def wait_started(self) -> None:
        def started() -> bool:
            return bool(self.state()["state"] != "planned")

        wait_until("the capture has started", started, describe=self.daemon.describe)

    def check(self, image: str) -> dict[str, Any]:
        """Wait for the end; check the image against a local pack, and the disk against its digest."""

        def ended() -> dict[str, Any]:
            with contextlib.suppress(Exception):
                capture = self.state()
                if capture["ended_at"] is not None:
                    return capture
            return {}

        capture = wait_until("the capture has ended", ended, describe=self.daemon.describe)
        assert capture["state"] == "complete", (capture, self.daemon.describe())
        packed = self.directory / f"{image}.local.dci"
        pack_image(self.disk, packed, PackOptions(name=image, block_bytes=BLOCK_BYTES))
        assert Path(capture["location"]).read_bytes() == packed.read_bytes()
        assert hashlib.sha256(self.disk.read_bytes()).hexdigest() == self.digest
        assert not (self.daemon.images / f".{image}.dci.partial").exists()
        return capture


def _kill_agent(capturing: Capturing, _link: CuttableLink) -> None:
    capturing.kill()
    capturing.start()


def _kill_daemon(capturing: Capturing, _link: CuttableLink) -> None:
    capturing.daemon.restart()


def _cut_link(_capturing: Capturing, link: CuttableLink) -> None:
    link.cut()


FAULTS: dict[str, Callable[[Capturing, CuttableLink], None]] = {
    "agent": _kill_agent,
    "daemon": _kill_daemon,
    "link": _cut_link,
}


def run_faults(daemon: Daemon, directory: Path, victim: str, seeds: range) -> None:
    with CuttableLink(daemon.url) as link:
        for seed in seeds:
            pick = random.Random(f"{victim} {seed}")
            capturing = Capturing(daemon, directory / f"{victim}-{seed}", seed, link.url)
            capturing.start()
            try:
                capturing.plan(f"{victim}-{seed}")
                capturing.wait_started()
                time.sleep(pick.uniform(0, CAPTURE_S))
                FAULTS[victim](capturing, link)
                capturing.check(f"{victim}-{seed}")
            finally:
                capturing.stop()


@pytest.mark.parametrize("victim", FAULTS)
def test_a_capture_survives_a_kill_at_any_moment(daemon: Daemon, tmp_path: Path, victim: str) -> None:
    """The first draws of twenty; ``make soak`` makes all of them."""
    run_faults(daemon, tmp_path, victim, range(KILLS_COUNT))


def test_an_agent_without_consent_captures_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """A daemon that is taken over must not read the disks of installed machines."""
    capturing = Capturing(daemon, tmp_path / "machine", 1)
    agent = ServiceAgent(capturing.directory, capturing.name, [daemon])
    with agent:
        capturing.plan("refused")
        failed = wait_until("it is refused", lambda: capturing.state()["error"], describe=daemon.describe)
    assert "--allow-capture" in failed
    assert capturing.state()["state"] == "failed"


def test_two_machines_are_captured_at_once_within_the_memory(daemon: Daemon, tmp_path: Path) -> None:
    machines = [Capturing(daemon, tmp_path / f"m{seed}", seed) for seed in (11, 12)]
    for one in machines:
        one.start()
    try:
        for one in machines:
            one.plan(f"image-{one.name}")
        for one in machines:
            one.check(f"image-{one.name}")
        assert peak_bytes(daemon.program.pid) <= DAEMON_BYTES_MAX
        for one in machines:
            assert one.agent is not None
            assert one.agent.program is not None
            assert peak_bytes(one.agent.program.pid) <= AGENT_BYTES_MAX
    finally:
        for one in machines:
            one.stop()
