"""A bounded pool of page-aligned buffers, as direct reads and writes need them."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator


def aligned_memory(length: int) -> memoryview:
    """Allocate zeroed memory that starts on a page boundary; it is freed with its last reference.

    The mapping is private rather than shared, the default of ``mmap``, so that the kernel can use huge pages: a disk
    request then has a few long segments instead of many short ones. Measured on a virtio disk with 4 MiB requests:
    writing 4000 MB/s instead of 2450, reading and hashing 2220 instead of 930. A page that is only read costs nothing.
    """
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


class AlignedBuffers:
    """A pool of at most ``count_max`` buffers of ``buffer_bytes``, allocated on first use. Thread-safe."""

    def __init__(self, buffer_bytes: int, count_max: int) -> None:
        self.buffer_bytes = buffer_bytes
        self._free_slots = threading.BoundedSemaphore(count_max)
        self._free: list[memoryview] = []

    @contextlib.contextmanager
    def borrow(self) -> Iterator[memoryview]:
        """Lend a buffer, whose content is arbitrary, for the ``with`` block.

        Waits while all are lent. Threads that borrow one buffer at a time can't deadlock.
        """
        with self._free_slots:
            try:
                buffer = self._free.pop()
            except IndexError:
                buffer = aligned_memory(self.buffer_bytes)
            try:
                yield buffer
            finally:
                self._free.append(buffer)

    def close(self) -> None:
        """Free the buffers that aren't lent."""
        self._free.clear()
