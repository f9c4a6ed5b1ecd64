"""A bounded pool of page-aligned buffers: memory that direct reads and writes take as it is."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator


def aligned_memory(length: int) -> memoryview:
    """Zeroed memory of its own that starts on a page boundary; given back when nobody refers to it any more.

    Private rather than shared, which ``mmap`` would choose, so that the kernel gives huge pages where it has them: a
    request to the disk then has a few long segments instead of many short ones. Measured on a virtio disk with 4 MiB at
    a time: writing 4000 MB/s instead of 2450, reading and hashing 2220 instead of 930. A page that is only read from
    costs nothing.
    """
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


class AlignedBuffers:
    """At most ``count_max`` buffers of ``buffer_bytes`` each, made when they are first needed. Thread-safe."""

    def __init__(self, buffer_bytes: int, count_max: int) -> None:
        self.buffer_bytes = buffer_bytes
        self._vacancies = threading.BoundedSemaphore(count_max)
        self._free: list[memoryview] = []

    @contextlib.contextmanager
    def borrow(self) -> Iterator[memoryview]:
        """Lend a buffer for the ``with`` block; what it holds at first is arbitrary.

        Waits when all are lent. A thread that borrows one at a time can't deadlock with others that do.
        """
        with self._vacancies:
            try:
                buffer = self._free.pop()
            except IndexError:
                buffer = aligned_memory(self.buffer_bytes)
            try:
                yield buffer
            finally:
                self._free.append(buffer)

    def close(self) -> None:
        """Give back the memory of those that aren't lent."""
        self._free.clear()
