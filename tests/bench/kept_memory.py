"""Keep the free memory of a virtual machine from returning to its host during measurements.

With free page reporting (virtio-balloon, Linux 5.7 and later) the guest returns memory that a run freed, and the next
run causes a fault at the host for every page: up to three seconds per GiB were seen, at random, in the next program.
Two measures avoid most of it for every program: reporting only the largest free blocks, and touching the memory of a
cast's targets right before the cast.
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
    """Report only the largest free blocks within the context; restore the setting afterwards."""
    try:
        before = _ORDER.read_text()
        _ORDER.write_text(_LARGEST_ORDER)
    except OSError:  # reporting isn't available here, or can't be changed
        yield
        return
    try:
        yield
    finally:
        _ORDER.write_text(before)


def touch_memory(folder: Path, byte_count: int) -> None:
    """Make the guest own ``byte_count`` bytes of free memory: write a file on a tmpfs and remove it.

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
