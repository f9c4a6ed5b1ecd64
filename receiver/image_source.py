"""An image file on this machine as the source of a restore or a comparison."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from protocol.errors import ImageDamagedError, ImageError, ImageFormatError, StorageError
from protocol.image_format import (
    PAGE_BYTES,
    ImageHeader,
    check_file_bytes,
    check_identity,
    parse_header_untrusted,
)
from protocol.manifest import Manifest


class ImageSource:
    """An opened ``.dci``. Thread-safe; a context manager.

    Attributes:
        path: the file.
        manifest: mapped, so that it takes memory only for the rows in use.
    """

    def __init__(self, path: Path, fd: int, header: ImageHeader, manifest: Manifest) -> None:
        """Use :func:`open_image`."""
        self.path = path
        self.manifest = manifest
        self._fd = fd
        self._payload_offset = header.payload_offset

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the manifest stays usable."""
        os.close(self._fd)

    def read_stored(self, block: int, buffer: memoryview) -> memoryview:
        """Read a block's stored bytes, unchecked, into the start of ``buffer``, which has ``block_bytes`` or more.

        Positional reads rather than a mapping: pages of a mapping would count as this program's memory.

        Returns:
            The part of ``buffer`` that was filled.

        Raises:
            ImageDamagedError: the file ended early.
            StorageError: the file couldn't be read.
        """
        view = buffer[: int(self.manifest.stored_bytes[block])]
        offset_bytes = self._payload_offset + int(self.manifest.offsets[block])
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset_bytes + done)
                if count == 0:
                    raise ImageDamagedError(
                        f"{self.path} was truncated while it was read: block {block} ends early"
                    )
                done += count
        except OSError as error:
            raise StorageError(
                f"{self.path}: block {block} at byte {offset_bytes} can't be read: {error.strerror}; "
                "check the disk that the image is on"
            ) from error
        return view


def open_image(path: Path) -> ImageSource:
    """Open an image file, its header and manifest checked, its blocks not.

    Raises:
        ImageError: the file can't be opened.
        ImageFormatError: it isn't an image, or one of a newer format.
        ImageDamagedError: it is truncated or altered.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is refused, not waited for
    except OSError as error:
        raise ImageError(f"the image {path} can't be opened: {error.strerror}") from error
    try:
        header = parse_header_untrusted(os.pread(fd, PAGE_BYTES, 0))
        check_file_bytes(header, os.fstat(fd).st_size)
        # From the file's start, since a mapping's offset must be a multiple of a page that may be larger than ours.
        mapped = mmap.mmap(fd, header.manifest_offset + header.manifest_bytes, access=mmap.ACCESS_READ)
        manifest = Manifest.parse_untrusted(memoryview(mapped)[header.manifest_offset :])
        check_identity(header, manifest.image_id, manifest.payload_bytes)
        # The digest has touched every page; only those that are used from now on shall count as ours.
        mapped.madvise(mmap.MADV_DONTNEED)
    except (ImageDamagedError, ImageFormatError) as error:
        os.close(fd)
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:
        os.close(fd)
        raise ImageError(f"the image {path} can't be read: {error.strerror}") from error
    return ImageSource(path, fd, header, manifest)
