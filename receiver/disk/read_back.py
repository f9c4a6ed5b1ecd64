"""Reading a disk past the page cache, which would only return the data that was just written."""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import mmap
import os
import stat
from pathlib import Path
from typing import Self

from protocol.errors import StorageError, TargetError, TargetTooSmallError
from protocol.shared.units import format_bytes
from receiver.disk.hang_watchdog import HangWatchdog

ALIGNMENT_BYTES = mmap.PAGESIZE
"""Alignment of offsets, lengths and memory in direct reads: a multiple of every logical sector size up to a page."""


class ReadBackMode(enum.StrEnum):
    """The way in which reads avoid the page cache."""

    DIRECT = "direct"
    """O_DIRECT: the device transfers into our memory."""
    CACHE_DROPPED = "cache-dropped"
    """Clean pages of the range are dropped before each read; for filesystems without O_DIRECT."""


class ReadBack:
    """A separate descriptor for reading a target. Thread-safe; a context manager.

    Attributes:
        path: the opened path.
        fd: the descriptor.
        mode: the way to avoid the page cache. A filesystem in memory (tmpfs) accepts O_DIRECT although it has nothing
            but its cache.
        is_device: a block device rather than a regular file.
        size_bytes: size when it was opened.
        hang_watchdog: the running calls to this disk, including writes through other descriptors.
    """

    def __init__(self, path: Path, fd: int, mode: ReadBackMode) -> None:
        """Use :func:`open_read_back`."""
        self.path = path
        self.fd = fd
        self.mode = mode
        self.is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.size_bytes = os.lseek(fd, 0, os.SEEK_END)
        self.hang_watchdog = HangWatchdog(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def read_into(self, buffer: memoryview, offset_bytes: int) -> int:
        """Fill ``buffer`` from ``offset_bytes``, both page-aligned; flush earlier writes first.

        Returns:
            Bytes read, less than the buffer only at the end of the target.

        Raises:
            StorageError: the device failed to read.
        """
        length = len(buffer)
        assert offset_bytes % ALIGNMENT_BYTES == 0
        assert length % ALIGNMENT_BYTES == 0
        done = 0
        try:
            # In direct mode too: these pages aren't read again, and a machine that is being imaged has better uses for
            # its memory; some filesystems (btrfs) fall back to the cache for direct reads.
            os.posix_fadvise(self.fd, offset_bytes, length, os.POSIX_FADV_DONTNEED)
            with self.hang_watchdog.call("reading", offset_bytes, length):
                while done < length:
                    count = self._read_once(buffer[done:], offset_bytes + done)
                    done += count
                    if count == 0 or done % ALIGNMENT_BYTES:
                        break
        except OSError as error:
            raise StorageError(
                f"{self.path}: reading {format_bytes(length)} at byte {offset_bytes} failed: {error.strerror}; "
                "the disk may be dying: check its SMART data and the kernel log"
            ) from error
        return done

    def _read_once(self, buffer: memoryview, offset_bytes: int) -> int:
        try:
            return os.preadv(self.fd, [buffer], offset_bytes)
        except OSError as error:
            if error.errno != errno.EINVAL or self.mode is not ReadBackMode.DIRECT:
                raise
        # Some filesystems accept O_DIRECT at open and refuse it here, and some devices need more than page alignment.
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        self.mode = ReadBackMode.CACHE_DROPPED
        return os.preadv(self.fd, [buffer], offset_bytes)


def open_read_back(path: Path, *, held_fd: int | None = None) -> ReadBack:
    """Open a file or block device for reading past the page cache.

    Args:
        path: its path.
        held_fd: an open descriptor: its file or device is opened again, even if ``path`` leads elsewhere now.

    Raises:
        TargetError: it can't be opened or is neither a file nor a block device.
        StorageError: it can't be read.
    """
    try:
        status = path.stat() if held_fd is None else os.fstat(held_fd)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise TargetError(f"{path} is neither a regular file nor a block device: name one of these")
        read_back = _open(path, path if held_fd is None else f"/proc/self/fd/{held_fd}")
    except OSError as error:
        raise TargetError(f"{path} can't be opened for reading: {error.strerror}") from error
    # Freed with its last reference: closed earlier, it would hide the error of a read that still refers to it.
    page = memoryview(mmap.mmap(-1, ALIGNMENT_BYTES))
    with contextlib.ExitStack() as undo:
        undo.callback(read_back.close)
        read_back.read_into(page, 0)  # determines the mode
        undo.pop_all()
    return read_back


def open_for_comparison(path: Path, raw_bytes: int) -> ReadBack:
    """Open a target for comparison with an image of ``raw_bytes``; nothing on it is changed.

    Raises:
        TargetTooSmallError: it is smaller than the image.
        TargetError: as :func:`open_read_back`.
    """
    read_back = open_read_back(path)
    if read_back.size_bytes < raw_bytes:
        read_back.close()
        raise too_small(path, read_back.size_bytes, raw_bytes, "it can't hold the same content")
    return read_back


def too_small(path: Path, size_bytes: int, raw_bytes: int, consequence: str) -> TargetTooSmallError:
    """Return the error for a target that is smaller than the image."""
    return TargetTooSmallError(
        f"{path} has {format_bytes(size_bytes)} ({size_bytes} bytes), the image {format_bytes(raw_bytes)} "
        f"({raw_bytes} bytes): {consequence}"
    )


def _open(path: Path, name: Path | str) -> ReadBack:
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return ReadBack(path, os.open(name, flags | os.O_DIRECT), ReadBackMode.DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    return ReadBack(path, os.open(name, flags), ReadBackMode.CACHE_DROPPED)
