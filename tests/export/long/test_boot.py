"""An exported image, and the image itself in ``diskcast vm``, boot to their login."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support.machines.accelerator import accelerator
from tests.support.machines.micro_image import PROMPT
from tests.support.machines.serial_console import SerialConsole
from tests.support.network.lab import REPOSITORY, diskcast, run
from tests.support.programs.processes import require_program

_BOOT_LIMIT_S: Final = 180.0
_END_LIMIT_S: Final = 30.0
_POWER_OFF: Final = "\x01x"
"""Ctrl-A X: the monitor's key of QEMU's serial console."""


def boot_to_login(argv: Sequence[str | Path], log: Path) -> SerialConsole:
    """Run a machine with its console on standard input and output until its login, then switch it off."""
    with subprocess.Popen(
        ["nice", "-n", "10", *map(str, argv)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        process_group=0,
    ) as process:
        console = SerialConsole(process, log.stem, log)
        try:
            end = console.wait_for(PROMPT, _BOOT_LIMIT_S)
            console.type("root\n")
            console.wait_for("#", _BOOT_LIMIT_S, after=end)
            console.type(_POWER_OFF)
            assert process.wait(_END_LIMIT_S) == 0
        finally:
            process.kill()
            process.wait()
            console.close()
    print(f"{log.stem}: login after {console.seconds_to(PROMPT):.1f} s")
    return console


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx"])
def test_an_exported_image_boots_to_its_login(kind: str, micro: Path, tmp_path: Path) -> None:
    output = tmp_path / f"micro.{kind}"
    run(*diskcast("export", micro, "-o", output))
    argv = [
        *(require_program("qemu-system-x86_64"), "-accel", accelerator(), "-cpu", "max", "-m", "512"),
        *("-M", "q35,graphics=off", "-nodefaults", "-display", "none", "-serial", "mon:stdio"),
        *("-drive", f"if=virtio,format={kind},file={output}"),
    ]
    boot_to_login(argv, tmp_path / f"{kind}.log")


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_vm_boots_an_image_and_leaves_it_as_it_was(firmware: str, micro: Path, tmp_path: Path) -> None:
    before = hashlib.sha256(micro.read_bytes()).digest()
    argv = diskcast(
        *("vm", micro, "--serial", "--firmware", firmware, "--disk", "virtio", "--memory", "512MiB")
    )
    boot_to_login(argv, tmp_path / f"vm-{firmware}.log")
    assert hashlib.sha256(micro.read_bytes()).digest() == before
