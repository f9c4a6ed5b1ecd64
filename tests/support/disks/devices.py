"""Loop devices and mounts for tests, removed at the end of the ``with`` block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.network.lab import run


@contextlib.contextmanager
def loop_device(backing: Path, *options: str) -> Iterator[Path]:
    """Provide a loop device over a file; ``options`` are those of losetup."""
    device = run("losetup", "--find", "--show", *options, backing).strip()
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(source: str | Path, point: Path, *options: str) -> Iterator[Path]:
    """Mount a filesystem with mount(8)."""
    point.mkdir(exist_ok=True)
    run("mount", *options, source, point)
    try:
        yield point
    finally:
        run("umount", point)
