"""Loop devices and mounts for tests, removed at the end of the ``with`` block."""

from __future__ import annotations

import contextlib
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
