"""An opened target: the descriptor that claims it, its flushes, and its first failure, which is final."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path
from typing import Final, NoReturn, Self

from protocol.errors import StorageError, TargetError, TargetReplacedError
from protocol.shared.units import format_bytes
from receiver.disk import syscalls
from receiver.disk.hang_watchdog import HangWatchdog
from receiver.disk.inventory.block_devices import BlockDevice
from receiver.disk.read_back import ReadBack, ReadBackMode

_STAT_BLOCK_BYTES: Final = 512
"""Unit of ``st_blocks``, independent of the filesystem's block size (stat(2))."""


class Target:
    """An opened target. Thread-safe; a context manager.

    Opening changes nothing; :meth:`prepare` makes the first change. After a failed write or flush the target is
    poisoned: the kernel reports lost pages once and then forgets them, so a later flush that "succeeds" proves nothing,
    and every later call raises the first failure again.

    Attributes:
        path: the path as the operator named it.
        fd: descriptor for writing.
        raw_bytes: size of the image.
        size_bytes: size of the target when it was opened.
        is_device: a block device rather than a regular file.
        is_partition: a partition that the kernel knows.
        sector_bytes: logical sector size of a device; 1 for a file.
        read_back: descriptor for reading past the page cache.
    """

    def __init__(
        self,
        path: Path,
        fd: int,
        read_back: ReadBack,
        *,
        raw_bytes: int,
        created: bool,
        device: BlockDevice | None = None,
    ) -> None:
        """Use :func:`receiver.target.open_target.open_target`."""
        self.path = path
        self.fd = fd
        self.read_back = read_back
        self.raw_bytes = raw_bytes
        self.size_bytes = read_back.size_bytes
        self.is_device = read_back.is_device
        self.is_partition = device is not None and device.partition_number is not None
        self.sector_bytes = syscalls.logical_sector_bytes(fd) if self.is_device else 1
        self._left_empty = created
        self._failure: StorageError | None = None
        self._sync_lock = threading.Lock()

    @property
    def hang_watchdog(self) -> HangWatchdog:
        """Return the watchdog for calls to this disk."""
        return self.read_back.hang_watchdog

    @property
    def readback_mode(self) -> ReadBackMode:
        """Return the way in which verification avoids the page cache."""
        return self.read_back.mode

    def prepare(self, data_bytes: int) -> None:
        """Check that the image's data has room, then extend a file to at least the length of the image.

        A longer file keeps its end until :meth:`cut_off`: cut earlier, an old disk image would look whole but isn't.

        Args:
            data_bytes: raw bytes to write, without zeros and unused blocks.

        Raises:
            TargetError: too little free space, or the filesystem allows no file of this length; nothing was changed.
        """
        self.check()
        if self.is_device:
            return
        try:
            self._require_space(data_bytes)
            if os.fstat(self.fd).st_size < self.raw_bytes:
                os.ftruncate(self.fd, self.raw_bytes)
            if self._left_empty:
                _sync_directory(self.path.parent)
        except OSError as error:
            raise TargetError(
                f"{self.path} can't be extended to {format_bytes(self.raw_bytes)}: {error.strerror}; "
                "choose a target on another filesystem"
            ) from error
        self._left_empty = False

    def cut_off(self) -> None:
        """Truncate a file to the length of the image; do nothing to a device.

        Raises:
            StorageError: final, the target is poisoned.
        """
        self.check()
        if self.is_device or os.fstat(self.fd).st_size <= self.raw_bytes:
            return
        try:
            os.ftruncate(self.fd, self.raw_bytes)
        except OSError as error:
            self.fail(error, f"truncating it to {self.raw_bytes} bytes")

    def _require_space(self, data_bytes: int) -> None:
        filesystem = os.statvfs(self.fd)
        if filesystem.f_blocks == 0:
            return  # a filesystem that doesn't know its size, such as tmpfs without a limit
        free_blocks = filesystem.f_bfree if os.geteuid() == 0 else filesystem.f_bavail
        free_bytes = free_blocks * filesystem.f_frsize
        # The file's present blocks are overwritten, cut off or punched.
        available_bytes = free_bytes + os.fstat(self.fd).st_blocks * _STAT_BLOCK_BYTES
        if data_bytes > available_bytes:
            raise TargetError(
                f"{self.path} needs {format_bytes(data_bytes)}, but only {format_bytes(available_bytes)} are available "
                "on its filesystem: make room or choose another target; nothing was written"
            )

    def check(self) -> None:
        """Raise the first failure again if there was one.

        Raises:
            StorageError: the target is poisoned.
        """
        if self._failure is not None:
            raise StorageError(str(self._failure)) from self._failure

    def require_in_place(self) -> None:
        """Check that a file is still at its path and as long as the image; do nothing for a device.

        Raises:
            TargetReplacedError: another program removed, replaced, moved or truncated it.
        """
        if self.is_device:
            return
        opened = os.fstat(self.fd)
        try:
            found = self.path.stat()
        except OSError:
            found = None
        if found is None or not os.path.samestat(found, opened):
            raise self.replaced_error("removed, moved or replaced")
        if opened.st_size < self.raw_bytes:
            raise self.replaced_error("truncated")

    def replaced_error(self, change: str) -> TargetReplacedError:
        """Return the error for a change by another program, which ``change`` names."""
        return TargetReplacedError(
            f"{self.path} was {change} by another program while the image was written to it, and doesn't hold the "
            "image: find that program, and write the image again"
        )

    def fail(self, error: OSError, action: str) -> NoReturn:
        """Poison the target because ``action`` failed.

        Raises:
            StorageError: always.
        """
        fix = (
            "make room"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "check the kernel log for the disk"
        )
        failure = StorageError(
            f"{self.path}: {action} failed: {error.strerror}; the target is incomplete: {fix} and write it again"
        )
        if self._failure is None:
            self._failure = failure
        raise failure from error

    def sync(self) -> None:
        """Wait until all writes are on the disk (fdatasync: content, size, and a device's own cache).

        Raises:
            StorageError: some were lost: final, the target is poisoned.
        """
        # One at a time: the kernel reports an error to one caller only, and the others must see it, too.
        with self._sync_lock:
            self.check()
            try:
                with self.hang_watchdog.call("flushing"):
                    os.fdatasync(self.fd)
            except OSError as error:
                self.fail(error, "flushing to the disk")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the target; remove a new file for which nothing was prepared.

        A hanging device stays open, since closing it would hang as well; it is closed when the process exits.
        """
        if self.hang_watchdog.stalled:
            return
        if self._left_empty:
            remove_created_file(self.path, self.fd)
            self._left_empty = False
        self.read_back.close()
        os.close(self.fd)


def remove_created_file(path: Path, fd: int) -> None:
    """Remove the file at ``path`` if it is the one that is open on ``fd``."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), os.fstat(fd)):
            path.unlink()


def _sync_directory(directory: Path) -> None:
    """Make a new file's name durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
