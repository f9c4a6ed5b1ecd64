"""Writing to a target: positional, in any order, from any thread, past the page cache where possible.

Two descriptors lead to the target. Whole pages go through one with O_DIRECT, straight from our memory: nothing dirty
stays behind, and a failed write is reported to its caller. Unaligned parts go through the page cache, and so does
everything if direct writes aren't possible. The kernel keeps the two coherent: a direct write first writes back and
then drops the cached pages of its range.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import mmap
import os
import threading
import weakref
from collections import deque
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from protocol.constants import BLOCK_BYTES_MAX, MIB
from protocol.image.manifest import BlockKind, Manifest
from receiver.disk import syscalls
from receiver.disk.aligned_buffers import AlignedBuffers
from receiver.disk.block_runs import block_runs
from receiver.disk.target import Target
from receiver.disk.zeroing import RangeClearer

BUFFER_BYTES: Final = BLOCK_BYTES_MAX
"""Longest run for one write call: at least one block of any size. Measured on a virtio disk: 1 MiB 2600 MB/s, 4 MiB
4200, 16 MiB 4000, on one, two or four threads alike; on a loop device and in memory they hardly differ."""

BUFFER_COUNT_MAX: Final = 8
"""Buffers lent at the same time: one for each thread that decodes and writes."""

WRITEBACK_BYTES: Final = 8 * MIB
"""Dirty bytes after which writeback is started: enough for large requests, and few enough that a flush has little left
to wait for."""

WRITEBACK_WINDOWS_MAX: Final = 8
"""Windows of that size in writeback: a disk slower than the network makes the writers wait here, rather than the final
flush wait for as much as fits into memory."""

_NOT_SUPPORTED: Final = (errno.EINVAL, errno.EOPNOTSUPP)
_NO_START: Final = 1 << 63


class WriteMode(enum.StrEnum):
    """The way in which whole pages are written."""

    DIRECT = "direct"
    """O_DIRECT: the device transfers from our memory."""
    PAGE_CACHE = "page-cache"
    """Through the page cache, with a bound on dirty bytes; for filesystems and devices without O_DIRECT."""


class DiskWriter:
    """A writer of an image's blocks on a prepared target. Thread-safe; a context manager.

    Nothing is durable before :meth:`Target.sync`. A failed write poisons the target and is never retried.

    Memory: up to :data:`BUFFER_COUNT_MAX` buffers of :data:`BUFFER_BYTES`, as many as are borrowed at the same time.

    Attributes:
        write_mode: the way to write whole pages; ``PAGE_CACHE`` once direct writing turned out impossible.
    """

    def __init__(self, target: Target, manifest: Manifest) -> None:
        self.write_mode = WriteMode.PAGE_CACHE
        self._target = target
        self._manifest = manifest
        self._buffers = AlignedBuffers(BUFFER_BYTES, BUFFER_COUNT_MAX)
        self._clearer = RangeClearer(target)
        self._lock = threading.Lock()
        self._bytes_written = 0
        self._dirty_bytes = 0
        self._dirty_start, self._dirty_stop = _NO_START, 0
        self._writing_back: deque[tuple[int, int]] = deque()
        self._direct_fd = -1
        self._close_direct: weakref.finalize[..., DiskWriter] | None = None
        self._alignment_bytes = max(mmap.PAGESIZE, target.sector_bytes)
        self._open_direct()

    def _open_direct(self) -> None:
        """Open a descriptor for direct writes, if the kernel agrees; the first write settles the rest."""
        alignment_bytes = syscalls.direct_alignment_bytes(self._target.fd)
        if alignment_bytes == 0:
            return
        # At least a page, so that a cached page and a direct write never overlap.
        self._alignment_bytes = max(self._alignment_bytes, alignment_bytes or 0)
        # Through the descriptor that holds the claim, not by name, which may lead elsewhere now. After any error the
        # page cache remains.
        with contextlib.suppress(OSError):
            path = f"/proc/self/fd/{self._target.fd}"
            self._direct_fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            self._close_direct = weakref.finalize(self, os.close, self._direct_fd)
            self.write_mode = WriteMode.DIRECT

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the buffers and the descriptor; nothing may be written afterwards."""
        self._buffers.close()
        if self._close_direct is not None:
            self._close_direct()

    @property
    def bytes_written(self) -> int:
        """Return the bytes of content written so far, counting rewritten ones again."""
        return self._bytes_written

    def borrow_buffer(self) -> contextlib.AbstractContextManager[memoryview]:
        """Lend a page-aligned buffer of :data:`BUFFER_BYTES` to fill and :meth:`write`, for the ``with`` block.

        Waits while :data:`BUFFER_COUNT_MAX` are lent; a thread borrows one at a time.
        """
        return self._buffers.borrow()

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """Write ``data`` at ``offset_bytes``.

        Whole pages at aligned offsets from aligned memory are written past the page cache.

        Args:
            offset_bytes: offset on the target.
            data: contiguous bytes; not copied, not kept.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self._target.check()
        start, stop = self._direct_part(offset_bytes, data)
        try:
            with self._target.hang_watchdog.call("writing", offset_bytes, len(data)):
                self._write_cached(data[:start], offset_bytes)
                start += self._write_direct(data[start:stop], offset_bytes + start)
                self._write_cached(data[start:], offset_bytes + start)
        except OSError as error:
            self._target.fail(error, f"writing {len(data)} bytes at byte {offset_bytes}")
        with self._lock:
            self._bytes_written += len(data)

    def _direct_part(self, offset_bytes: int, data: memoryview) -> tuple[int, int]:
        """Return the range of ``data`` that can be written directly; empty if there is none."""
        if self.write_mode is not WriteMode.DIRECT:
            return 0, 0
        unit = self._alignment_bytes
        start = -offset_bytes % unit
        stop = len(data) - (offset_bytes + len(data)) % unit
        address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0] if start < stop else 0
        return (start, stop) if start < stop and (address + start) % mmap.PAGESIZE == 0 else (0, 0)

    def _write_direct(self, data: memoryview, offset_bytes: int) -> int:
        """Write aligned ``data`` and return the bytes written, fewer if the rest must go through the page cache."""
        done = 0
        while done < len(data) and self.write_mode is WriteMode.DIRECT:
            try:
                done += _written(os.pwrite(self._direct_fd, data[done:], offset_bytes + done))
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                # Refused, not failed: nothing was transferred. Some filesystems accept O_DIRECT at open and refuse it
                # here, and some devices need more than page alignment. Other threads may be using the descriptor.
                self.write_mode = WriteMode.PAGE_CACHE
            if done % self._alignment_bytes:
                break
        return done

    def _write_cached(self, data: memoryview, offset_bytes: int) -> None:
        done = 0
        while done < len(data):
            done += _written(os.pwrite(self._target.fd, data[done:], offset_bytes + done))
        if done:
            self._note_dirty(offset_bytes, done)

    def _note_dirty(self, offset_bytes: int, length: int) -> None:
        with self._lock:
            self._dirty_bytes += length
            self._dirty_start = min(self._dirty_start, offset_bytes)
            self._dirty_stop = max(self._dirty_stop, offset_bytes + length)
            if self._dirty_bytes < WRITEBACK_BYTES:
                return
            start, stop = self._dirty_start, self._dirty_stop
            self._dirty_bytes, self._dirty_start, self._dirty_stop = 0, _NO_START, 0
            self._writing_back.append((start, stop))
            is_behind = len(self._writing_back) > WRITEBACK_WINDOWS_MAX
            oldest_start, oldest_stop = self._writing_back.popleft() if is_behind else (0, 0)
        # A range that spans scattered blocks costs no more: the kernel visits only dirty pages.
        syscalls.start_writeback(self._target.fd, start, stop - start)
        if is_behind:
            syscalls.wait_for_writeback(self._target.fd, oldest_start, oldest_stop - oldest_start)

    def zero_blocks(self, blocks: NDArray[np.int64]) -> None:
        """Make ``blocks`` (ascending), all of kind ZERO, read as zeros; see :meth:`zero_range`.

        Raises:
            StorageError: final, the target is poisoned.
        """
        assert np.all(self._manifest.kind[blocks] == BlockKind.ZERO)
        for first, stop in block_runs(blocks):
            self.zero_range(*self._byte_range(first, stop))

    def zero_range(self, start_bytes: int, stop_bytes: int) -> None:
        """Make the target read as zeros between two byte offsets.

        In a file, data becomes a hole and a hole stays one; a device zeroes by its own command if it has one. Only
        zeros that must be written count as written.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self._clearer.zero(start_bytes, stop_bytes, self.write)

    def discard_blocks(self, blocks: NDArray[np.int64]) -> None:
        """Discard ``blocks`` (ascending), all of kind UNUSED; in a file they become holes.

        Best effort: a failure is no error. Reads of the blocks are undefined afterwards.

        Raises:
            StorageError: the target was poisoned before.
        """
        assert np.all(self._manifest.kind[blocks] == BlockKind.UNUSED)
        for first, stop in block_runs(blocks):
            self._clearer.discard(*self._byte_range(first, stop))

    def _byte_range(self, first: int, stop: int) -> tuple[int, int]:
        block_bytes = self._manifest.block_bytes
        return first * block_bytes, min(stop * block_bytes, self._manifest.raw_bytes)


def _written(count: int) -> int:
    if count == 0:
        raise OSError(errno.EIO, "the device takes no more bytes")
    return count
