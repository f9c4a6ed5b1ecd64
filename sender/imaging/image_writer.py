"""Write an image file; under its final name it is always complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES, MIB
from protocol.errors import ConfigurationError, StorageError
from protocol.image.image_format import PAGE_BYTES, ImageHeader, build_header, payload_offset_of
from protocol.image.manifest_format import ManifestLayout
from sender.imaging.image_file import hash_file_range

_FLUSH_BYTES: Final = 256 * MIB
"""Payload that is flushed in the background at once. At most twice as much is unflushed, so that the last fsync is
short on machines with a lot of memory too."""

IMAGE_FILE_MODE: Final = 0o640
"""Of images and their copies: a golden image holds domain secrets, which aren't for every user of this machine."""

_IOVEC_COUNT_MAX: Final = 1024  # IOV_MAX of Linux

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_ALLOWED: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
)


class ImageWriter:
    """An image file under construction, as a context manager.

    The file is ``.NAME.partial`` in the output's directory, under a lock that the kernel releases when the process
    exits; the next process to write the same image reuses a file that a killed process left. :meth:`commit` makes the
    file durable and renames it; leaving the context before that removes it. After a power cut during :meth:`commit`,
    the final name has either the old file or the new one, complete.
    """

    def __init__(self, path: Path, start: bytes, layout: ManifestLayout) -> None:
        """Create the temporary file.

        Args:
            path: the final name; an existing file is replaced at :meth:`commit`.
            start: the manifest before its columns.
            layout: offsets of the columns.

        Raises:
            ConfigurationError: the file can't be created there, or another process is writing it.
            StorageError: the disk failed.
        """
        # os.path rather than Path here and below: in a directory without search permission os.path returns a value
        # where Path raises, and _create() has the better message.
        self.path = Path(os.path.realpath(path))
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._start = start
        self._layout = layout
        self._payload_offset = payload_offset_of(layout.manifest_bytes)
        self.payload_bytes = 0
        self._flushed_bytes = 0
        self._flush: Future[None] | None = None
        if os.path.exists(self.path) and not os.path.isfile(self.path):  # noqa: PTH110, PTH113
            raise ConfigurationError(f"{self.path} exists and isn't a file: choose another output")
        self._fd = self._create()
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._committed = False

    def _create(self) -> int:
        """Open the temporary file, empty and locked."""
        while True:
            try:
                fd = os.open(
                    self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode=IMAGE_FILE_MODE
                )
            except OSError as error:
                if error.errno in _NOT_ALLOWED:
                    raise ConfigurationError(
                        f"can't write in {self.path.parent}: {error.strerror}; choose an existing directory that you "
                        "may write to"
                    ) from error
                raise self._storage_error(error) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise ConfigurationError(
                    f"another process is writing {self.path}: wait for it or choose another output"
                ) from error
            # Between open and lock another writer may have finished: then the file is its image.
            if self._partial.exists() and os.path.samestat(self._partial.stat(), os.fstat(fd)):
                os.ftruncate(fd, 0)
                return fd
            os.close(fd)

    def write_rows(
        self,
        first_block: int,
        kind: NDArray[np.uint8],
        stored_bytes: NDArray[np.uint32],
        stored_hash: bytes,
        raw_hash: bytes,
    ) -> None:
        """Write ``n`` manifest rows from ``first_block``; hashes are concatenated.

        Raises:
            StorageError: the disk is full or failed.
        """
        layout = self._layout
        for column_offset, width, octets in (
            (layout.stored_bytes_offset, 4, stored_bytes.astype("<u4").tobytes()),
            (layout.kind_offset, 1, kind.tobytes()),
            (layout.stored_hash_offset, HASH_BYTES, stored_hash),
            (layout.raw_hash_offset, HASH_BYTES, raw_hash),
        ):
            self._write(PAGE_BYTES + column_offset + first_block * width, [octets])

    def append_payload(self, parts: Sequence[bytes | memoryview]) -> None:
        """Write the stored bytes of the next blocks.

        Raises:
            StorageError: the disk is full or failed.
        """
        for first in range(0, len(parts), _IOVEC_COUNT_MAX):
            batch = parts[first : first + _IOVEC_COUNT_MAX]
            self._write(self._payload_offset + self.payload_bytes, batch)
            self.payload_bytes += sum(map(len, batch))
        if self.payload_bytes - self._flushed_bytes >= _FLUSH_BYTES:
            self._await_flush()
            self._flush = self._flusher.submit(os.fdatasync, self._fd)
            self._flushed_bytes = self.payload_bytes

    def _await_flush(self) -> None:
        if self._flush is not None:
            with self._translated():
                self._flush.result()

    def _write(self, offset: int, parts: Sequence[bytes | memoryview]) -> None:
        rest = [memoryview(part) for part in parts if len(part)]
        with self._translated():
            while rest:
                written = os.pwritev(self._fd, rest, offset)
                offset += written
                while rest and written >= len(rest[0]):
                    written -= len(rest.pop(0))
                if written:
                    rest[0] = rest[0][written:]

    def commit(
        self, start: bytes | None = None, sign: Callable[[ImageHeader], ImageHeader] = lambda header: header
    ) -> bytes:
        """Complete the file, make it durable and rename it to its final name.

        Args:
            start: the manifest before its columns, if it changed since the constructor; of the same length.
            sign: returns the header with a signature.

        Returns:
            The image's id.

        Raises:
            StorageError: the disk is full or failed; an existing file of the final name is unchanged.
        """
        start = start or self._start
        assert len(start) == len(self._start)
        self._await_flush()
        self._write(PAGE_BYTES, [start])
        with self._translated():
            os.ftruncate(self._fd, self._payload_offset + self.payload_bytes)
            image_id = hash_file_range(self._fd, PAGE_BYTES, self._layout.manifest_bytes)
        header = build_header(
            manifest_bytes=self._layout.manifest_bytes, payload_bytes=self.payload_bytes, image_id=image_id
        )
        self._write(0, [sign(header).to_page()])
        with self._translated():
            os.fsync(self._fd)
            self._partial.rename(self.path)
            self._committed = True
            # The rename itself must survive a power cut.
            directory_fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory_fd)
            finally:
                os.close(directory_fd)
        return image_id

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._storage_error(error) from error

    def _storage_error(self, error: OSError) -> StorageError:
        fix = "free some space or choose another disk" if error.errno in _FULL else "check the disk"
        return StorageError(f"{self.path}: can't write the image: {error.strerror}; {fix}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flusher.shutdown(wait=True)
        if not self._committed:
            # Closing the descriptor releases the lock: afterwards another process may use the name.
            self._partial.unlink(missing_ok=True)
        os.close(self._fd)
