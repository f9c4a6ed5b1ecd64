"""A file under construction beside its final name, where it appears only once it is complete and durable."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from protocol.errors import ConfigurationError, StorageError

PRIVATE_FILE_MODE: Final = 0o640
"""Of images, their copies and exports: a golden image holds domain secrets, which aren't for every user."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_ALLOWED: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
)


class PartialFile:
    """A file under construction, as a context manager.

    The file is ``.NAME.partial`` in the output's directory, under a lock that the kernel releases when the process
    exits; the next process to write the same output reuses a file that a killed process left. :meth:`commit` makes the
    file durable and renames it; leaving the context before that removes it. After a power cut during :meth:`commit`,
    the final name has either the old file or the new one, complete.

    Attributes:
        path: the final name, resolved.
        fd: descriptor for reading and writing.
        keep: whether leaving the context keeps the temporary file.
    """

    def __init__(self, path: Path, *, noun: str, keep: bool = False) -> None:
        """Create the temporary file, locked, and empty unless ``keep`` is set.

        Args:
            path: the final name; an existing file is replaced at :meth:`commit`.
            noun: the file's kind, for messages: ``the image``.
            keep: keep the content of an existing temporary file, and the file itself when the context is left.

        Raises:
            ConfigurationError: the file can't be created there, or another process is writing it.
            StorageError: the disk failed.
        """
        # os.path rather than Path here and below: in a directory without search permission os.path returns a value
        # where Path raises, and _create() has the better message.
        self.path = Path(os.path.realpath(path))
        self._noun = noun
        self.keep = keep
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        if os.path.exists(self.path) and not os.path.isfile(self.path):  # noqa: PTH110, PTH113
            raise ConfigurationError(f"{self.path} exists and isn't a file: choose another output")
        self.fd = self._create()
        self._committed = False

    def _create(self) -> int:
        while True:
            try:
                fd = os.open(
                    self._partial,
                    os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                    mode=PRIVATE_FILE_MODE,
                )
            except OSError as error:
                if error.errno in _NOT_ALLOWED:
                    raise ConfigurationError(
                        f"can't write in {self.path.parent}: {error.strerror}; choose an existing directory that you "
                        "may write to"
                    ) from error
                raise self.storage_error(error) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise ConfigurationError(
                    f"another process is writing {self.path}: wait for it or choose another output"
                ) from error
            # Between open and lock another writer may have finished: then the file is its output.
            if self._partial.exists() and os.path.samestat(self._partial.stat(), os.fstat(fd)):
                if not self.keep:
                    os.ftruncate(fd, 0)
                return fd
            os.close(fd)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` at ``offset``.

        Raises:
            StorageError: the disk is full or failed.
        """
        rest = memoryview(data)
        with self.translated():
            while rest:
                written = os.pwrite(self.fd, rest, offset)
                offset += written
                rest = rest[written:]

    def commit(self) -> None:
        """Make the file durable and rename it to its final name.

        Raises:
            StorageError: the disk is full or failed; an existing file of the final name is unchanged.
        """
        with self.translated():
            os.fsync(self.fd)
            self._partial.rename(self.path)
            self._committed = True
            # The rename itself must survive a power cut.
            directory_fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory_fd)
            finally:
                os.close(directory_fd)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn errors of the operating system into :class:`StorageError`."""
        try:
            yield
        except OSError as error:
            raise self.storage_error(error) from error

    def storage_error(self, error: OSError) -> StorageError:
        """Return the error to raise for a failed write."""
        fix = "free some space or choose another disk" if error.errno in _FULL else "check the disk"
        return StorageError(f"{self.path}: can't write {self._noun}: {error.strerror}; {fix}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed and not self.keep:
            # Closing the descriptor releases the lock: afterwards another process may use the name.
            self._partial.unlink(missing_ok=True)
        os.close(self.fd)
