"""An image file on this machine, the source of a restore or a comparison."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Self

from protocol.constants import MIB
from protocol.errors import DiskcastError, ImageChangedError, ImageError, StorageError
from protocol.image.image_format import check_file_bytes, check_identity
from protocol.image.manifest import Manifest
from protocol.image.stored_manifest import StoredManifest
from protocol.program.image_header import read_header
from protocol.program.positional_reads import read_at

MANIFEST_IN_MEMORY_BYTES_MAX: Final = 32 * MIB
"""Largest manifest to hold in memory, that of a disk of 120 GB: a tenth of a receiver's 300 MB. Of a larger manifest 5
bytes a block are held, and hashes are read when they are needed."""


class ImageSource:
    """An opened ``.dci``. Thread-safe; a context manager.

    Nothing is mapped: truncating a mapped file would kill this program with SIGBUS in the middle of a restore.

    Attributes:
        path: path of the file.
        manifest: its manifest; usable after :meth:`close` if it is held in memory.
    """

    def __init__(self, path: Path, fd: int) -> None:
        """Use :func:`open_image`."""
        self.path = path
        self._fd = fd
        header = read_header(fd, path)
        check_file_bytes(header, os.fstat(fd).st_size)
        self._payload_offset = header.payload_offset
        manifest: memoryview | StoredManifest
        if header.manifest_bytes > MANIFEST_IN_MEMORY_BYTES_MAX:

            def read(start: int, into: memoryview) -> None:
                self._read(header.manifest_offset + start, into, "the manifest")

            manifest = StoredManifest(header.manifest_bytes, read, str(path))
        else:
            manifest = memoryview(bytearray(header.manifest_bytes))
            self._read(header.manifest_offset, manifest, "the manifest")
        self.manifest = Manifest.parse_untrusted(manifest)
        check_identity(header, self.manifest.image_id, self.manifest.payload_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def read_stored(self, block: int, buffer: memoryview) -> memoryview:
        """Read a block's stored bytes, unchecked, into the start of ``buffer``, which has ``block_bytes`` or more.

        Returns:
            The filled part of ``buffer``.

        Raises:
            ImageChangedError: the file was truncated after it was opened.
            StorageError: the file can't be read.
        """
        view = buffer[: int(self.manifest.stored_bytes[block])]
        self._read(self._payload_offset + self.manifest.offset_of(block), view, f"block {block}")
        return view

    def _read(self, offset_bytes: int, into: memoryview, thing: str) -> None:
        try:
            count = read_at(self._fd, into, offset_bytes)
        except OSError as error:
            raise StorageError(
                f"{self.path}: {thing} at byte {offset_bytes} can't be read: {error.strerror}; check the disk that "
                "holds the image"
            ) from error
        if count < len(into):
            raise ImageChangedError(
                f"{self.path} was truncated while it was read: {thing} ends early; restore the file from a good "
                "copy, and let nothing write to it"
            )


def open_image(path: Path) -> ImageSource:
    """Open an image file and check its header and manifest, but not its blocks.

    Raises:
        ImageError: the file can't be opened.
        ImageFormatError: it isn't an image, or has a newer format.
        ImageDamagedError: it is truncated or altered.
        StorageError: its disk failed.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe must not block
    except OSError as error:
        raise ImageError(f"the image {path} can't be opened: {error.strerror}") from error
    try:
        return ImageSource(path, fd)
    except OSError as error:
        os.close(fd)
        raise ImageError(f"the image {path} can't be read: {error.strerror}") from error
    except (ImageChangedError, StorageError):  # these name the file
        os.close(fd)
        raise
    except DiskcastError as error:
        os.close(fd)
        raise type(error)(f"{path}: {error}") from error
