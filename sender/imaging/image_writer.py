"""Write an image file; under its final name it is always complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES, MIB
from protocol.image.image_format import PAGE_BYTES, ImageHeader, build_header, payload_offset_of
from protocol.image.manifest_format import ManifestLayout
from sender.imaging.image_file import hash_file_range
from sender.imaging.partial_file import PartialFile

_FLUSH_BYTES: Final = 256 * MIB
"""Payload that is flushed in the background at once. At most twice as much is unflushed, so that the last fsync is
short on machines with a lot of memory too."""

_IOVEC_COUNT_MAX: Final = 1024  # IOV_MAX of Linux


class ImageWriter:
    """An image file under construction, as a context manager: a :class:`PartialFile` with the sections of an image.

    Attributes:
        path: the final name, resolved.
        payload_bytes: bytes of the payload so far.
    """

    def __init__(self, path: Path, start: bytes, layout: ManifestLayout, *, keep: bool = False) -> None:
        """Create the temporary file.

        Args:
            path: the final name; an existing file is replaced at :meth:`commit`.
            start: the manifest before its columns.
            layout: offsets of the columns.
            keep: keep the content of an existing temporary file, and the file itself when the context is left.

        Raises:
            ConfigurationError: the file can't be created there, or another process is writing it.
            StorageError: the disk failed.
        """
        self._start = start
        self._layout = layout
        self._payload_offset = payload_offset_of(layout.manifest_bytes)
        self.payload_bytes = 0
        self._flushed_bytes = 0
        self._flush: Future[None] | None = None
        self._file = PartialFile(path, noun="the image", keep=keep)
        self.path = self._file.path
        self._fd = self._file.fd
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")

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
            with self._file.translated():
                self._flush.result()

    def _write(self, offset: int, parts: Sequence[bytes | memoryview]) -> None:
        rest = [memoryview(part) for part in parts if len(part)]
        with self._file.translated():
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
        with self._file.translated():
            os.ftruncate(self._fd, self._payload_offset + self.payload_bytes)
            image_id = hash_file_range(self._fd, PAGE_BYTES, self._layout.manifest_bytes)
        header = build_header(
            manifest_bytes=self._layout.manifest_bytes, payload_bytes=self.payload_bytes, image_id=image_id
        )
        self._write(0, [sign(header).to_page()])
        self._file.commit()
        return image_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flusher.shutdown(wait=True)
        self._file.__exit__(kind, error, trace)
