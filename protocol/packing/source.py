"""The source of ``pack``: a raw disk image or a block device, read by position, holes skipped."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from protocol.constants import GIB
from protocol.errors import SourceError
from protocol.packing.bad_sectors import SectorRecovery
from protocol.program.positional_reads import PositionalReadError, read_at

_BLKSSZGET: Final = 0x1268  # linux/fs.h: logical sector size, int
_FILE_SECTOR_BYTES: Final = 512

_FORGET_BYTES_MIN: Final = 4 * GIB
"""Sources of at least this size leave the page cache as they are read: they are read once, and would evict the data of
other programs."""


class Source:
    """An open source; safe for reading from many threads.

    Attributes:
        path: as the operator named it.
        raw_bytes: size of the source.
        logical_sector_bytes: sector size of the device; 512 for a file.
        recovery: reader of the parts around bad sectors.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path`` read-only.

        Raises:
            SourceError: it is missing, unreadable, empty, or neither a file nor a block device.
        """
        self.path = path
        try:
            # Non-blocking, so that a named pipe is refused below and doesn't hang here.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"{path}: can't open the source: {error.strerror}") from error
        self._use(fd)

    @classmethod
    def from_descriptor(cls, path: Path, fd: int, *, logical_sector_bytes: int | None = None) -> Self:
        """Return a source that reads a duplicate of ``fd``, which may have no name, such as a spool.

        Args:
            path: name of the source in messages.
            fd: a readable file or block device; the caller keeps it.
            logical_sector_bytes: sector size of the disk whose content a file has; by default as of any file.

        Raises:
            SourceError: as the constructor.
        """
        source = cls.__new__(cls)
        source.path = path
        source._use(os.dup(fd))
        if logical_sector_bytes is not None:
            source.logical_sector_bytes = logical_sector_bytes
        return source

    def _use(self, fd: int) -> None:
        path, self._fd = self.path, fd
        try:
            self._status = os.fstat(self._fd)
            self._check_type()
            self.raw_bytes = self._size_bytes()
            if self.raw_bytes == 0:
                raise SourceError(f"{path}: the source is empty; name a disk or a file with a disk's content")
            self.logical_sector_bytes = self._sector_bytes()
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            self.recovery = self._new_recovery(zero_fill=False)
        except OSError as error:
            self.close()
            raise SourceError(f"{path}: can't use the source: {error.strerror}") from error
        except SourceError:
            self.close()
            raise

    def _check_type(self) -> None:
        mode = self._status.st_mode
        if stat.S_ISDIR(mode):
            raise SourceError(f"{self.path}: the source is a directory; name a disk or a disk image file")
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise SourceError(f"{self.path}: the source is neither a file nor a block device")

    @property
    def fd(self) -> int:
        """The descriptor, for tools that open the same file."""
        return self._fd

    @property
    def status(self) -> os.stat_result:
        """The status of the file when it was opened."""
        return self._status

    @property
    def is_device(self) -> bool:
        """True if the source is a block device."""
        return stat.S_ISBLK(self._status.st_mode)

    def _size_bytes(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END) if self.is_device else os.fstat(self._fd).st_size

    def _sector_bytes(self) -> int:
        if not self.is_device:
            return _FILE_SECTOR_BYTES
        result = fcntl.ioctl(self._fd, _BLKSSZGET, bytes(4))
        return int(struct.unpack("i", result)[0])

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield half-open byte ranges that may have data, ascending; the rest are holes, which read as zeros.

        A block device, or a file on a filesystem without support for holes, is one range.

        Raises:
            SourceError: the filesystem failed to list the file's holes.
        """
        if self.is_device:
            yield 0, self.raw_bytes
            return
        position = 0
        while position < self.raw_bytes:
            try:
                start = os.lseek(self._fd, position, os.SEEK_DATA)
                stop = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end
                    return
                if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                    start, stop = position, self.raw_bytes
                else:
                    raise self._read_error(position, error) from error
            yield start, min(stop, self.raw_bytes)
            position = stop

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes from ``offset``.

        Raises:
            SourceError: the source is shorter now, or can't be read there; the message names the offset.
        """
        try:
            count = read_at(self._fd, into, offset)
        except PositionalReadError as error:
            count = self._recover(offset, into, error)
        if count < len(into):
            raise SourceError(
                f"{self.path}: the source became shorter while it was packed: it had {self.raw_bytes} bytes and "
                f"now ends before offset {offset + count}; stop the program that changes it, and pack again"
            )

    def zero_bad_sectors(self) -> None:
        """From now on read bad sectors as zeros; :attr:`recovery` lists them."""
        self.recovery = self._new_recovery(zero_fill=True)

    def _new_recovery(self, *, zero_fill: bool) -> SectorRecovery:
        return SectorRecovery(
            self._fd, sector_bytes=self._sector_bytes(), raw_bytes=self.raw_bytes, zero_fill=zero_fill
        )

    def _recover(self, offset: int, into: memoryview, error: PositionalReadError) -> int:
        try:
            return self.recovery.read_into(offset, into)
        except SourceError as bad:
            failure = self._read_error(error.offset_bytes, error)
            raise SourceError(f"{failure}; {bad}") from error
        except OSError as again:
            raise self._read_error(error.offset_bytes, again) from again

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset``, fewer than ``length`` at the end of the source.

        Raises:
            SourceError: as :meth:`read_into`.
        """
        data = bytearray(max(0, min(length, self.raw_bytes - offset)))
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def expect(self, offset: int, count: int) -> None:
        """Let the kernel read ahead: it can't detect the order of spans that several threads read."""
        os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_WILLNEED)

    def forget(self, offset: int, count: int) -> None:
        """Release the page cache of a range that was read, if the source is large."""
        if self.raw_bytes >= _FORGET_BYTES_MIN:
            os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_DONTNEED)

    def check_unchanged(self) -> None:
        """Compare size and, for a file, modification time with those at the start.

        Changes of a device's content can't be detected: the operator must prevent them.

        Raises:
            SourceError: the source was changed while it was packed.
        """
        now = os.fstat(self._fd)
        size_bytes = self._size_bytes()
        if size_bytes != self.raw_bytes:
            raise SourceError(
                f"{self.path}: the source changed its size from {self.raw_bytes} to {size_bytes} bytes while it was "
                "packed; stop the program that changes it, and pack again"
            )
        if not self.is_device and now.st_mtime_ns != self._status.st_mtime_ns:
            raise SourceError(
                f"{self.path}: the source was written to while it was packed; stop the program that writes to it, and "
                "pack again"
            )

    def _read_error(self, offset: int, error: OSError) -> SourceError:
        return SourceError(
            f"{self.path}: can't read the source at offset {offset}: {error.strerror}; check the disk "
            "(dmesg, smartctl) before you image from it"
        )

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
