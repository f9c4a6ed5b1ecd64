"""Loop devices and mounts for tests, removed at the end of the ``with`` block."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.network.lab import run, wait_until


@contextlib.contextmanager
def loop_device(backing: Path, *options: str) -> Iterator[Path]:
    """Provide a loop device over a file; ``options`` are those of losetup."""
    device = Path(run("losetup", "--find", "--show", *options, backing).strip())
    source = Path("/sys/block", device.name, "loop", "backing_file")
    attached = source.read_text()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)
        # The kernel detaches at the last close: another program that lists the disks may still have it open.
        wait_until(f"{device} gives up {backing}", lambda: _text(source) != attached)


def remove_partition(device: Path, number: int) -> None:
    """Remove a partition from the kernel's table, once nothing else has it open."""

    def removed() -> bool:
        done = subprocess.run(["delpart", device, str(number)], capture_output=True, check=False)
        return done.returncode == 0

    wait_until(f"partition {number} of {device} is free", removed)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the device has no file any longer
        return ""


@contextlib.contextmanager
def mounted(source: str | Path, point: Path, *options: str) -> Iterator[Path]:
    """Mount a filesystem with mount(8)."""
    point.mkdir(exist_ok=True)
    run("mount", *options, source, point)
    try:
        yield point
    finally:
        run("umount", point)
