"""A spool: the raw disk that a foreign image describes, in a sparse file without a name.

The file has no name from its creation on (O_TMPFILE), so nothing is left behind however the program ends. Ranges that
nobody writes are holes: they take no space, and read as zeros.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from protocol.constants import KIB, MIB
from protocol.errors import ConfigurationError, ForeignImageError, StorageError
from protocol.shared.units import format_bytes

HOLE_BYTES: Final = 64 * KIB
"""Zeros of this length and alignment become a hole: the smallest block of an image, and many filesystem blocks."""

RESERVE_BYTES: Final = 256 * MIB
"""Space that a spool leaves to others on its filesystem: a decompression bomb doesn't fill the disk of a daemon."""

_CHECK_BYTES: Final = 32 * MIB
"""Bytes written between two looks at the free space; less than the reserve."""
_ZEROS: Final = bytes(HOLE_BYTES)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Spool:
    """A raw disk under construction; the file disappears when the context is left."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        """Create the file.

        Args:
            directory: a folder on a filesystem with space for the disk's content.
            limit_bytes: largest size of the disk.

        Raises:
            ConfigurationError: no file can be created there.
        """
        self.directory = directory
        self.limit_bytes = limit_bytes
        self.raw_bytes = 0
        self._unchecked_bytes = 0
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise ConfigurationError(
                f"can't write in {directory}: {error.strerror}; choose an existing directory that you may write to"
            ) from error

    @property
    def fd(self) -> int:
        """The descriptor, open for reading and writing."""
        return self._file.fileno()

    def set_size(self, raw_bytes: int) -> None:
        """Make the disk ``raw_bytes`` long; new bytes are a hole.

        Raises:
            ForeignImageError: it would be larger than the limit.
            StorageError: the filesystem can't hold so large a file.
        """
        if raw_bytes > self.limit_bytes:
            raise ForeignImageError(
                f"the image's disk has more than {format_bytes(self.limit_bytes)}: if you trust it, raise --max-size"
            )
        try:
            os.ftruncate(self.fd, raw_bytes)
        except OSError as error:
            raise self._error(error, raw_bytes) from error
        self.raw_bytes = raw_bytes

    def require_space(self, needed_bytes: int) -> None:
        """Check that the filesystem has space for ``needed_bytes`` of content and the reserve.

        Raises:
            StorageError: it has less; the message names the bytes.
        """
        status = os.fstatvfs(self.fd)
        free_bytes = status.f_bavail * status.f_frsize
        if needed_bytes + RESERVE_BYTES > free_bytes:
            raise StorageError(
                f"{self.directory} has {format_bytes(free_bytes)} free, and unpacking the source there takes "
                f"{format_bytes(needed_bytes)} and {format_bytes(RESERVE_BYTES)} of reserve: free space, or choose "
                "another directory for the output"
            )

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``offset``, growing the disk if necessary; aligned zeros stay holes.

        A range is written at most once: zeros over other bytes would be lost.

        Raises:
            ForeignImageError: the disk would be larger than the limit.
            StorageError: the filesystem is full or failed.
        """
        if offset + len(data) > self.raw_bytes:
            self.set_size(offset + len(data))
        view = memoryview(data)
        start = 0
        while start < len(view):
            stop = min(len(view), start + HOLE_BYTES - (offset + start) % HOLE_BYTES)
            run_start = start
            while start < len(view) and not _is_zero(view[start:stop]):
                start, stop = stop, min(len(view), stop + HOLE_BYTES)
            self._write(offset + run_start, view[run_start:start])
            start = max(start, stop)

    def overwrite_at(self, offset: int, data: bytes | memoryview) -> None:
        """Replace bytes of the disk; zeros are written as well.

        Raises:
            StorageError: as :meth:`write_at`.
        """
        self._write(offset, memoryview(data))

    def _write(self, offset: int, view: memoryview) -> None:
        self._unchecked_bytes += len(view)
        if self._unchecked_bytes > _CHECK_BYTES:
            self.require_space(self._unchecked_bytes)
            self._unchecked_bytes = 0
        while view:
            try:
                count = os.pwrite(self.fd, view, offset)
            except OSError as error:
                raise self._error(error, self.raw_bytes) from error
            view, offset = view[count:], offset + count

    def _error(self, error: OSError, needed_bytes: int) -> StorageError:
        if error.errno in _FULL:
            return StorageError(
                f"{self.directory} is full: unpacking the source there takes up to {format_bytes(needed_bytes)}; free "
                "space, or choose another directory for the output"
            )
        return StorageError(f"can't write in {self.directory}: {error.strerror}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _is_zero(view: memoryview) -> bool:
    # A copy for memcmp: memoryviews are compared item by item, which takes fifty times as long for zeros.
    return not view[0] and bytes(view) == _ZEROS[: len(view)]
