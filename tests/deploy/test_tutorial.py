"""Test of the tutorial's commands: on the loopback interface, with two agents and files instead of disks."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.network.lab import LIMIT_S
from tests.support.network.ports import free_port_range
from tests.support.programs.serving import wait_until

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial" / "classroom.md").read_text()
MACHINES = ("pc01", "pc02")
_READY = "diskcast serves "


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)


class Reader:
    """A reader who follows the tutorial, with the names of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / ".local/state/diskcast"
        self.port, self.data_port, self.control_port = free_port_range(3)
        self.exports: list[str] = []
        self.started: list[subprocess.Popen[str]] = []
        self.environment = os.environ | {
            "HOME": str(folder),
        }
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        disk = random.Random(7).randbytes(3 << 20)
        (folder / "disk.img").write_bytes(disk)
        self._write_files()

    def _write_files(self) -> None:
        (configuration,) = _blocks("toml")
        configuration = configuration.replace(
            'listen = "0.0.0.0:7400"',
            f'listen = "0.0.0.0:{self.port}"\nstate_directory = "{self.state}"',
        )
        configuration = configuration.replace(
            'interface = "eth1"',
            f'interface = "lo"\ndata_port = {self.data_port}\ncontrol_ports = "{self.control_port}"',
        )
        (self.folder / "classroom.toml").write_text(configuration)
        (machines,) = _blocks("csv")
        machines = machines.replace("name,mac,position", "name,mac,serial,position")
        machines = re.sub(r"^(pc\d+),([^,]+),", r"\1,\2,SERIAL-\1,", machines, flags=re.MULTILINE)
        (self.folder / "lab-1.csv").write_text(machines)

    def type(self, line: str) -> None:
        """Run a command at the prompt; one that doesn't exit continues in the background."""
        line = line.replace("SOURCE", "disk.img").replace("10.0.0.1:7400", f"127.0.0.1:{self.port}")
        if "--pin PIN" in line:
            [pin] = re.findall(r"--pin ([a-z2-7]{52})", (self.folder / "serve.log").read_text())
            line = line.replace("--pin PIN", f"--pin {pin}")
        if line.startswith("export "):
            self.exports.append(line)
        elif line.startswith("diskcast serve "):
            self._await(self._start(line, "serve.log"), "serve.log", _READY)
        elif line.startswith("diskcast-agent run "):
            for name in MACHINES:
                own = line.replace("--target auto", f"--target {name}.img --identity SERIAL-{name}")
                self._start(own.replace("eth0", "lo"), f"{name}.log")
        else:
            done = subprocess.run(self._shell(line), cwd=self.folder, env=self.environment, check=False,
                                  capture_output=True, text=True, timeout=LIMIT_S)  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}\n{self._logs()}"
            if " pack " in line:
                self._await_image()

    def _shell(self, line: str) -> list[str]:
        return ["bash", "-c", "\n".join([*self.exports, line])]

    def _start(self, line: str, log: str) -> subprocess.Popen[str]:
        with (self.folder / log).open("w") as output:
            process = subprocess.Popen(
                self._shell(f"exec {line}"), cwd=self.folder, env=self.environment, text=True,
                stdout=subprocess.DEVNULL, stderr=output,
            )  # fmt: skip
        self.started.append(process)
        return process

    def _await(self, process: subprocess.Popen[str], log: str, text: str) -> None:
        def appeared() -> bool:
            assert process.poll() is None, self._logs()
            return text in (self.folder / log).read_text()

        wait_until(f"{text!r} is in {log}", appeared, describe=self._logs)

    def _await_image(self) -> None:
        """Repeat the command until the expected text appears."""

        def available() -> bool:
            done = subprocess.run(self._shell("diskcast images scan && diskcast images list --json"), text=True,
                                  cwd=self.folder, env=self.environment, capture_output=True, check=True)  # fmt: skip
            return '"available"' in done.stdout

        wait_until("the image is available", available, describe=self._logs)

    def _logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def leave(self) -> None:
        """Stop the started programs, the daemon last."""
        for process in reversed(self.started):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    typing = Reader(tmp_path)
    try:
        yield typing
    finally:
        typing.leave()


def test_whoever_types_the_tutorial_has_a_room_with_verified_disks(reader: Reader) -> None:
    lines = [line[2:] for block in _blocks("console") for line in block.splitlines()]
    assert lines.pop(0).startswith("make ")
    for line in lines:
        reader.type(line)
    disk = (reader.folder / "disk.img").read_bytes()
    for name in MACHINES:
        assert (reader.folder / f"{name}.img").read_bytes() == disk
