"""An open image file with checked header and manifest, whose blocks are read by position."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from blake3 import blake3

from protocol.constants import MIB
from protocol.errors import (
    DiskcastError,
    ImageChangedError,
    ImageDamagedError,
    ImageError,
    StorageError,
)
from protocol.image.image_format import check_file_bytes, check_identity
from protocol.image.manifest import Manifest
from protocol.image.stored_manifest import StoredManifest
from protocol.program.image_header import read_header
from protocol.program.positional_reads import PositionalReadError, read_at

MANIFEST_IN_MEMORY_BYTES_MAX: Final = 128 * MIB
"""The manifest of a 480 GB disk, a third of the sender's 400 MB. Of a larger manifest, 5 bytes per block are in memory
and the hashes are read on demand."""

_HASH_BUFFER_BYTES: Final = 4 * MIB
"""Large enough for BLAKE3 to use all CPUs."""


class ImageFile:
    """An open image; reading is safe from many threads.

    If the file changes while it is open, a read either fails or returns the original bytes: the manifest is in memory,
    or checked at each read. The file isn't memory-mapped: truncating a mapped file would kill this program with
    SIGBUS.

    Attributes:
        path: as the operator named it.
        header: the header page.
        manifest: usable after :meth:`close` if it is in memory.
    """

    def __init__(self, path: Path, fd: int, manifest_in_memory_bytes_max: int | None = None) -> None:
        """Use :meth:`open`."""
        self._in_memory_bytes_max = manifest_in_memory_bytes_max or MANIFEST_IN_MEMORY_BYTES_MAX
        self.path = path
        self._fd = fd
        self._left_open = False
        status = os.fstat(fd)
        self._status_at_open = status.st_size, status.st_mtime_ns
        self.header = read_header(fd, path)
        check_file_bytes(self.header, status.st_size)
        self.manifest = self._load_manifest()
        check_identity(self.header, self.manifest.image_id, self.manifest.payload_bytes)

    @classmethod
    def open(cls, path: Path, *, manifest_in_memory_bytes_max: int | None = None) -> Self:
        """Open an image and check everything but the payload: header, size, manifest against the image's id.

        Reads the whole manifest once, 0.1 s for a TiB of disk. The hashes of one above the limit aren't kept in memory.

        Raises:
            ImageDamagedError: the file is truncated, altered or has extra bytes after its end.
            ImageFormatError: the file isn't an image, or comes from a newer diskcast.
            ImageError: the file is missing or unreadable.
            StorageError: the disk failed.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ImageError(f"{path}: can't open the image: {error.strerror}") from error
        try:
            return cls(path, fd, manifest_in_memory_bytes_max)
        except OSError as error:
            os.close(fd)
            raise ImageError(f"{path}: can't read the image: {error.strerror}") from error
        except (ImageChangedError, StorageError):  # these name the file
            os.close(fd)
            raise
        except DiskcastError as error:
            os.close(fd)
            raise type(error)(f"{path}: {error}") from error

    def _load_manifest(self) -> Manifest:
        offset, byte_count = self.header.manifest_offset, self.header.manifest_bytes
        if byte_count > self._in_memory_bytes_max:

            def read(start: int, into: memoryview) -> None:
                self.read_file(offset + start, into)

            return Manifest.parse_untrusted(StoredManifest(byte_count, read, str(self.path)))
        data = bytearray(byte_count)
        self.read_file(offset, memoryview(data))
        return Manifest.parse_untrusted(memoryview(data).toreadonly())

    def read_stored(self, block: int, into: memoryview) -> int:
        """Read the stored bytes of ``block`` into the start of ``into``.

        Returns:
            The number of stored bytes; 0 for a ZERO or UNUSED block.

        Raises:
            ImageChangedError: the file ends within the block.
            StorageError: the disk failed.
        """
        count = int(self.manifest.stored_bytes[block])
        self.read_payload(self.manifest.offset_of(block), into[:count])
        return count

    def read_payload(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the payload from ``offset``: the stored bytes of consecutive blocks.

        Raises:
            ImageChangedError: the file ends before the last of them.
            StorageError: the disk failed.
        """
        self.read_file(self.header.payload_offset + offset, into)

    def read_file(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the file's bytes from ``offset``; errors as :meth:`read_payload`."""
        try:
            count = read_at(self._fd, into, offset)
        except PositionalReadError as error:
            raise StorageError(
                f"{self.path}: can't read the image at offset {error.offset_bytes}: {error.strerror}; check the disk"
            ) from error
        if count < len(into):
            raise ImageChangedError(
                f"{self.path}: the image was truncated while it was in use: the file now ends before offset "
                f"{offset + count}; restore it from a good copy, and stop the program that writes to it"
            )

    def wrong_block(self, block: int) -> ImageDamagedError:
        """Return the error to raise for a ``block`` whose stored bytes don't match its hash.

        Distinguishes a file that was written to since it was opened from one that was already damaged.
        """
        try:
            changed = self._changed_since_open()
        except OSError as error:
            raise StorageError(
                f"{self.path}: can't read the image: {error.strerror}; check the disk"
            ) from error
        if changed:
            return ImageChangedError(
                f"{self.path}: the image was written to while it was in use: block {block} no longer has the bytes "
                "that were packed; restore the file from a good copy, and stop the program that writes to it"
            )
        return ImageDamagedError(
            f"{self.path}: block {block} no longer has the bytes that were packed: restore the file from a good copy "
            "(`diskcast verify` checks all blocks), or pack again"
        )

    def _changed_since_open(self) -> bool:
        """Return whether the file was written to, other than by signing it again."""
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) == self._status_at_open:
            return False
        try:
            header = read_header(self._fd, self.path)
        except ImageError:
            return True
        signed_again = header != self.header and header.image_id == self.header.image_id
        return status.st_size != self._status_at_open[0] or not signed_again

    def leave_open(self) -> None:
        """Make :meth:`close` do nothing.

        For a program that exits while one of its threads is stuck in a read: closing might wait for the same disk.
        """
        self._left_open = True

    def close(self) -> None:
        """Close the file."""
        if not self._left_open:
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hash_file_range(fd: int, offset: int, count: int) -> bytes:
    """Return the BLAKE3 hash of ``count`` bytes of a file from ``offset``, read with 4 MiB of memory.

    Raises:
        OSError: the file can't be read.
        ImageDamagedError: the file ends early.
    """
    hasher = blake3(max_threads=blake3.AUTO)
    buffer = memoryview(bytearray(min(_HASH_BUFFER_BYTES, count)))
    done = 0
    while done < count:
        part = buffer[: count - done]
        got = read_at(fd, part, offset + done)
        if got < len(part):
            raise ImageDamagedError(
                f"the file was truncated to {offset + done + got} bytes while it was read"
            )
        hasher.update(part)
        done += got
    return hasher.digest()
