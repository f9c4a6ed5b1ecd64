"""Loop devices and mounts of the tests' own, which are gone when the ``with`` block ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.network.lab import run


@contextlib.contextmanager
def loop_device(backing: Path, *options: str) -> Iterator[Path]:
    """A loop device over a file; ``options`` are losetup's."""
    device = run("losetup", "--find", "--show", *options, backing).strip()
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(source: str | Path, point: Path, *options: str) -> Iterator[Path]:
    """What mount(8) mounts."""
    point.mkdir(exist_ok=True)
    run("mount", *options, source, point)
    try:
        yield point
    finally:
        run("umount", point)
