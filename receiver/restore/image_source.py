"""An image's file, the source of a restore or a comparison: on this machine, or anywhere else that can be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol, Self

from protocol.constants import MIB
from protocol.errors import DiskcastError, ImageChangedError, ImageError, StorageError
from protocol.image.image_format import ImageHeader, check_file_bytes, check_identity
from protocol.image.manifest import Manifest
from protocol.image.stored_manifest import StoredManifest
from protocol.program.image_header import read_header
from protocol.program.positional_reads import read_at
from protocol.trust.image_policy import OfferedImage

MANIFEST_IN_MEMORY_BYTES_MAX: Final = 32 * MIB
"""Largest manifest to hold in memory, that of a disk of 120 GB: a tenth of a receiver's 300 MB. Of a larger manifest 5
bytes a block are held, and hashes are read when they are needed."""


class ImageBytes(Protocol):
    """The bytes of an image's file. Thread-safe."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""

    @property
    def size_bytes(self) -> int:
        """Size of the file."""

    def header(self) -> ImageHeader:
        """Read the header page.

        Raises:
            ImageError, StorageError, OSError: it can't be read, or isn't one of an image.
        """

    def read_into(self, into: memoryview, offset_bytes: int) -> int:
        """Fill ``into`` from ``offset_bytes``; return the bytes read, fewer only at the end of the file.

        Raises:
            OSError: the file can't be read.
            ImageError: the file has changed, or is unavailable.
        """

    def close(self) -> None:
        """Close the file."""


class LocalImageBytes:
    """A file on this machine.

    Nothing is mapped: truncating a mapped file would kill this program with SIGBUS in the middle of a restore.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self.size_bytes = os.fstat(fd).st_size

    @property
    def name(self) -> str:
        """The path."""
        return str(self._path)

    def header(self) -> ImageHeader:
        """Read the header page, or the copy beside the file while it is being signed."""
        return read_header(self._fd, self._path)

    def read_into(self, into: memoryview, offset_bytes: int) -> int:
        """Read from the file."""
        return read_at(self._fd, into, offset_bytes)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class ImageSource:
    """An opened ``.dci``. Thread-safe; a context manager.

    Attributes:
        name: path or URL of the file.
        header: its header page.
        manifest: its manifest; usable after :meth:`close` if it is held in memory.
    """

    def __init__(self, data: ImageBytes) -> None:
        """Use :func:`open_image`.

        Raises:
            ImageError, StorageError, OSError: as :class:`ImageBytes` raises, or it isn't a complete image.
        """
        self.name = data.name
        self._data = data
        self.header = header = data.header()
        check_file_bytes(header, data.size_bytes)
        self._payload_offset = header.payload_offset
        manifest: memoryview | StoredManifest
        if header.manifest_bytes > MANIFEST_IN_MEMORY_BYTES_MAX:

            def read(start: int, into: memoryview) -> None:
                self._read(header.manifest_offset + start, into, "the manifest")

            manifest = StoredManifest(header.manifest_bytes, read, self.name)
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
        self._data.close()

    @property
    def offered(self) -> OfferedImage:
        """Return the image with the signature in its header, to be accepted or refused.

        Raises:
            UnsignedImageError: the signature field is damaged.
        """
        return OfferedImage(self.manifest.image_id, self.manifest.name, self.header.signed)

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
            count = self._data.read_into(into, offset_bytes)
        except OSError as error:
            raise StorageError(
                f"{self.name}: {thing} at byte {offset_bytes} can't be read: {error.strerror}; check the disk that "
                "holds the image"
            ) from error
        if count < len(into):
            raise ImageChangedError(
                f"{self.name} was truncated while it was read: {thing} ends early; restore the file from a good "
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
        return ImageSource(LocalImageBytes(path, fd))
    except OSError as error:
        os.close(fd)
        raise ImageError(f"the image {path} can't be read: {error.strerror}") from error
    except (ImageChangedError, StorageError):  # these name the file
        os.close(fd)
        raise
    except DiskcastError as error:
        os.close(fd)
        raise type(error)(f"{path}: {error}") from error
