"""Functions that read a disk's bytes."""

from __future__ import annotations

from collections.abc import Callable

Read = Callable[[int, int], bytes]
"""``read(offset, length)`` returns the disk's bytes there, fewer at its end."""


def reader_from(read: Read, start_bytes: int, size_bytes: int) -> Read:
    """Return a reader of one range of the disk: offsets count from its start, and it ends with the range."""

    def read_within(offset: int, length: int) -> bytes:
        length = min(length, size_bytes - offset)
        return read(start_bytes + offset, length) if length > 0 else b""

    return read_within
