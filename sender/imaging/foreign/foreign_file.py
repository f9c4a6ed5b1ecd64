"""A file of a foreign image: opened once, read by our own checks, and passed to the sandbox by its descriptor."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from protocol.errors import ForeignImageError, SourceError
from protocol.program.positional_reads import PositionalReadError, read_at


class ForeignFile:
    """An open file; the same descriptor serves checks and tools, so that nobody can exchange the file between them."""

    def __init__(self, path: Path, *, dir_fd: int | None = None) -> None:
        """Open a file.

        Args:
            path: the file, as the operator named it.
            dir_fd: a folder in which only the file's plain name counts; a symbolic link isn't followed there, because
                the image chose the name.

        Raises:
            SourceError: it can't be opened, or isn't a file.
        """
        self.path = path
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            if dir_fd is None:
                self.fd = os.open(path, flags)
            else:
                self.fd = os.open(path.name, flags | os.O_NOFOLLOW, dir_fd=dir_fd)
        except OSError as error:
            raise SourceError(f"{path}: can't open the source: {error.strerror}") from error
        self._status = os.fstat(self.fd)
        if not stat.S_ISREG(self._status.st_mode):
            self.close()
            raise SourceError(f"{path}: a foreign image must be a file; for a disk use --format raw")

    @property
    def size_bytes(self) -> int:
        """Size of the file when it was opened."""
        return self._status.st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset``, fewer at the end of the file.

        Raises:
            SourceError: the file can't be read.
        """
        data = bytearray(max(0, min(length, self.size_bytes - offset)))
        try:
            count = read_at(self.fd, memoryview(data), offset)
        except PositionalReadError as error:
            raise SourceError(f"{self.path}: can't read the source: {error.strerror}") from error
        return bytes(data[:count])

    def check_unchanged(self) -> None:
        """Compare size and modification time with those at the start.

        Raises:
            ForeignImageError: the file was changed while it was read.
        """
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise ForeignImageError(
                f"{self.path} was written to while it was read: stop the program that writes to it, and pack again"
            )

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
