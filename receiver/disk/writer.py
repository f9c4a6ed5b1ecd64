"""Writing blocks to a target: positional, any order, from any thread; zeros without writing them where possible."""

from __future__ import annotations

import errno
import os
import threading
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import MIB
from protocol.manifest import BlockKind, Manifest
from receiver.disk import calls
from receiver.disk.block_runs import block_runs
from receiver.target import Target

WRITEBACK_BYTES: Final = 8 * MIB
"""Dirty bytes after which writing them to the disk is started: enough for large requests, little enough that a flush
finds hardly anything left to wait for."""

ZERO_BYTES_MAX: Final = 256 * MIB
"""Zeroed in one call: a device without a command for it has to write them, and the call can't be interrupted."""

_ZEROS: Final = bytes(MIB)
_NOT_SUPPORTED: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)


class DiskWriter:
    """Writes an image's blocks to a prepared target. Thread-safe.

    Writes go through the page cache; nothing is durable before :meth:`Target.sync`.
    """

    def __init__(self, target: Target, manifest: Manifest) -> None:
        self._target = target
        self._manifest = manifest
        self._lock = threading.Lock()
        self._bytes_written = 0
        self._dirty_bytes = 0
        self._dirty_start = target.raw_bytes
        self._dirty_stop = 0

    @property
    def bytes_written(self) -> int:
        """Bytes of block content written so far, rewritten ones counted again."""
        return self._bytes_written

    def write_block(self, block: int, data: memoryview) -> None:
        """Write a whole block.

        Args:
            block: block number.
            data: its ``manifest.raw_length(block)`` raw bytes, contiguous; not copied, not kept.

        Raises:
            StorageError: final, the target is poisoned.
        """
        length = self._manifest.raw_length(block)
        assert len(data) == length
        self._write(data, block * self._manifest.block_bytes)
        self._note_written(block * self._manifest.block_bytes, length)

    def _write(self, data: memoryview, offset_bytes: int) -> None:
        self._target.check()
        done = 0
        try:
            while done < len(data):
                count = os.pwrite(self._target.fd, data[done:] if done else data, offset_bytes + done)
                if count == 0:
                    raise OSError(errno.EIO, "the device takes no more bytes")
                done += count
        except OSError as error:
            self._target.fail(error, f"writing {len(data)} bytes at byte {offset_bytes}")

    def _note_written(self, offset_bytes: int, length: int) -> None:
        with self._lock:
            self._bytes_written += length
            self._dirty_bytes += length
            self._dirty_start = min(self._dirty_start, offset_bytes)
            self._dirty_stop = max(self._dirty_stop, offset_bytes + length)
            if self._dirty_bytes < WRITEBACK_BYTES:
                return
            start, stop = self._dirty_start, self._dirty_stop
            self._dirty_bytes, self._dirty_start, self._dirty_stop = 0, self._target.raw_bytes, 0
        # A range that spans scattered blocks costs no more: the kernel looks only at dirty pages.
        try:
            calls.start_writeback(self._target.fd, start, stop - start)
        except OSError as error:
            self._target.fail(error, f"writing at byte {start}")

    def prepare_zero_runs(self, blocks: NDArray[np.int64]) -> None:
        """Make those of ``blocks`` (ascending) that are all zeros read as zeros; the others are left alone.

        In a file, data under them becomes a hole and a hole stays one; a device zeroes them by its own command where
        it has one.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self._target.check()
        zeros = blocks[self._manifest.kind[blocks] == BlockKind.ZERO]
        block_bytes = self._manifest.block_bytes
        for first, stop in block_runs(zeros, ZERO_BYTES_MAX // block_bytes):
            if self._target.is_device:
                self._zero_device(first * block_bytes, min(stop * block_bytes, self._target.raw_bytes))
            else:
                self._zero_file(first * block_bytes, stop * block_bytes)

    def _zero_device(self, start: int, stop: int) -> None:
        self._target.check()
        whole_stop = stop - stop % self._target.sector_bytes
        try:
            if start < whole_stop:
                calls.zero_out(self._target.fd, start, whole_stop - start)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                self._target.fail(error, f"zeroing {whole_stop - start} bytes at byte {start}")
            whole_stop = start
        self._write_zeros(whole_stop, stop)

    def _zero_file(self, start: int, stop: int) -> None:
        """Zero ``[start, stop)`` of the file; ``stop`` may lie beyond its end, so that its last page goes, too."""
        self._target.check()
        fd = self._target.fd
        file_stop = min(stop, self._target.raw_bytes)
        try:
            data = calls.next_data(fd, start)
            if data is None or data >= file_stop:
                return
            calls.punch_hole(fd, start, stop - start)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                self._target.fail(error, f"making a hole of {stop - start} bytes at byte {start}")
            self._write_zeros(start, file_stop)

    def _write_zeros(self, start: int, stop: int) -> None:
        zeros = memoryview(_ZEROS)
        for offset_bytes in range(start, stop, len(zeros)):
            piece = zeros[: stop - offset_bytes]
            self._write(piece, offset_bytes)
            self._note_written(offset_bytes, len(piece))
