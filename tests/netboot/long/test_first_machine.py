"""The README's way to the first bare machine: if it fails, a new user gives up.

The commands are read from the README itself, so that they can't differ from it.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machines.boot_network import BootNetwork
from tests.support.machines.micro_image import PROMPT, make_micro_image
from tests.support.machines.netboot_room import AGENT_STARTED, BOOT_LIMIT_S, CAST_LIMIT_S
from tests.support.machines.virtual_machine import Disk, MachineSpec, VirtualMachine
from tests.support.network.lab import INTERFACE, LIMIT_S, REPOSITORY, LabError, Program, diskcast, wait_until
from tests.support.signing import signing_environment

pytestmark = pytest.mark.needs_root

_STATE = Path("/var/lib/diskcast")
_BUILD_LIMIT_S = 1800.0


def readme_commands() -> list[list[str]]:
    """Return the commands of the README's section about bare machines, without ``diskcast``."""
    text = (REPOSITORY / "README.md").read_text()
    section = text.partition("## Bare machines")[2].partition("\n## ")[0]
    block = section.partition("```console\n")[2].partition("```")[0]
    lines = re.findall(r"^# diskcast (.*?)(?:  +#.*)?$", block, re.MULTILINE)
    return [line.split() for line in lines]


class Newcomer:
    """A new user: root on a machine with nothing but the packages that the README names.

    Each command sees a ``/var/lib/diskcast`` and a home directory of its own test.
    """

    def __init__(self, network: BootNetwork, folder: Path) -> None:
        self._network = network
        self._state, home = folder / "state", folder / "home"
        for path in (self._state, home):
            path.mkdir()
        self._environment = {"XDG_CONFIG_HOME": str(home)}
        hide = 'mount --bind "$0" ' + str(_STATE) + ' && exec "$@"'
        self._prefix = [*network.server_prefix, "sh", "-c", hide, str(self._state)]

    def start(self, arguments: list[str]) -> Program:
        return self._network.start(self._prefix, diskcast(*arguments), self._environment)

    def run(self, arguments: list[str]) -> None:
        program = self.start(arguments)
        assert program.wait(LIMIT_S) == 0, program.describe()

    def serve(self, arguments: list[str], ready: str, limit_s: float) -> Program:
        """Start a command that runs on, and wait until it says ``ready``."""
        program = self.start(arguments)

        def started() -> bool:
            if program.exit_code is not None:
                raise LabError(f"it has ended: {program.describe()}")
            return ready in program.stderr_text()

        wait_until(f"{ready!r}", started, limit_s, describe=program.describe)
        return program


@pytest.fixture
def network(tmp_path: Path) -> Iterator[BootNetwork]:
    made = not _STATE.exists()
    _STATE.mkdir(parents=True, exist_ok=True)
    try:
        with BootNetwork(tmp_path / "network", 1) as network:
            network.start_dhcp()
            yield network
    finally:
        if made:
            _STATE.rmdir()


def download_packages(folder: Path) -> float:
    """Fill the cache of packages, since the room has no way to the internet; return the seconds."""
    started_s = time.monotonic()
    for options in ((), ("--no-firmware",)):
        command = ["nice", "-n", "10", *diskcast("netboot", "build", "-o", folder, "--quick", *options)]
        done = subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, **signing_environment()},
            capture_output=True, text=True, check=False, timeout=_BUILD_LIMIT_S,
        )  # fmt: skip
        if done.returncode == 0:
            return time.monotonic() - started_s
    raise LabError(f"no medium can be built here: {done.stderr[-2000:]}")


def test_four_commands_of_the_readme_image_the_first_bare_machine(
    network: BootNetwork, medium: Path, tmp_path: Path
) -> None:
    golden = make_micro_image(tmp_path / "golden.raw", medium)
    download_s = download_packages(tmp_path / "scratch")
    places = {"eth1": INTERFACE, "/dev/sdb": str(golden)}
    commands = [[places.get(word, word) for word in command] for command in readme_commands()]
    assert [command[0] for command in commands] == ["serve", "pack", "netboot", "casts"]
    daemon, pack, boots, cast = commands
    newcomer = Newcomer(network, tmp_path)
    started_s = time.monotonic()

    def note(text: str) -> None:
        load = os.getloadavg()[0]
        print(f"{time.monotonic() - started_s:6.0f} s  {text} (load {load:.1f})", flush=True)

    newcomer.serve(daemon, "diskcast serves ", LIMIT_S)
    note("the daemon serves")
    newcomer.run(pack)
    note("the golden disk is packed")
    service = newcomer.serve(boots, "diskcast serves boots", _BUILD_LIMIT_S)
    assert "built the boot medium" in service.stderr_text()
    assert "created room lab-1" in service.stderr_text()
    note("the boot medium is built and served")
    watched = newcomer.start(cast)
    disk = Disk.blank(tmp_path / "disk")
    with VirtualMachine(network, 0, MachineSpec(disks=(disk,)), name="first") as machine:
        booted = machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)
        note("the machine has booted the live system")
        machine.console.wait_for(PROMPT, CAST_LIMIT_S, after=booted)
        note("the machine has booted from its new disk")
    assert watched.wait(LIMIT_S) == 0, watched.describe()
    minutes = (time.monotonic() - started_s) / 60
    print(
        f"{len(commands)} commands, {minutes:.1f} min; a build that filled the cache before: {download_s:.0f} s"
    )
