"""Keeps a virtual machine's free memory from going back to its host while casts are timed.

With free page reporting (virtio-balloon, Linux 5.7 and later) the guest hands back what a finished run freed, and the
next run pays for every page again in faults at the host: three seconds a GiB were seen, at random, for whichever
program came next. Reporting only the largest free blocks, and touching the memory that a cast's targets will take right
before it, takes most of that out, for every program alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_ORDER = Path("/sys/module/page_reporting/parameters/page_reporting_order")
_LARGEST_ORDER = "10"
"""MAX_PAGE_ORDER of x86-64 and aarch64 with 4 KiB pages."""

_PIECE_BYTES = 4 << 20


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Report only the largest free blocks inside the block; the setting before is restored."""
    try:
        before = _ORDER.read_text()
        _ORDER.write_text(_LARGEST_ORDER)
    except OSError:  # no such reporting here, or not ours to change
        yield
        return
    try:
        yield
    finally:
        _ORDER.write_text(before)


def touch_memory(folder: Path, byte_count: int) -> None:
    """Have the guest own ``byte_count`` bytes of free memory: write a file on a tmpfs and remove it.

    Allocating the file isn't enough: a tmpfs clears allocated pages only when they are used.
    """
    path = folder / "touched"
    piece = bytes(_PIECE_BYTES)
    with path.open("wb", buffering=0) as file:
        try:
            for _ in range(-(-byte_count // _PIECE_BYTES)):
                file.write(piece)
        finally:
            path.unlink()
