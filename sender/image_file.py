"""An image file opened for use: checked header and manifest, blocks read by position."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from blake3 import blake3

from protocol.constants import MIB
from protocol.errors import DiskcastError, ImageDamagedError, ImageError, StorageError
from protocol.image_format import (
    PAGE_BYTES,
    ImageHeader,
    check_file_bytes,
    check_identity,
    parse_header_untrusted,
)
from protocol.manifest import Manifest

_HASH_BUFFER_BYTES: Final = 4 * MIB
"""Large enough for BLAKE3 to use all CPUs."""


class ImageFile:
    """An open image; reading is safe from many threads.

    The manifest is mapped: it costs address space, and memory only for the pages in use, which the kernel can take
    back. The payload is read by position instead, since all of a mapped payload would count as this process's memory.
    The file mustn't be truncated while it is open (``pack`` never does: it replaces a file as a whole).

    Attributes:
        path: as the operator named it.
        header: the header page.
        manifest: valid as long as someone holds it, also after :meth:`close`.
    """

    def __init__(
        self, path: Path, fd: int, header: ImageHeader, manifest: Manifest, mapping: mmap.mmap
    ) -> None:
        """Use :meth:`open`."""
        self.path = path
        self.header = header
        self.manifest = manifest
        self._fd = fd
        self._mapping = mapping

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an image and check all of it but the payload: header, size, manifest against the image's id.

        Reads the whole manifest once, 0.1 s for a TiB of disk.

        Raises:
            ImageDamagedError: truncated, altered or with something behind its end.
            ImageFormatError: not an image, or made by a newer diskcast.
            ImageError: missing or unreadable.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ImageError(f"{path}: can't open the image: {error.strerror}") from error
        try:
            header = parse_header_untrusted(os.pread(fd, PAGE_BYTES, 0))
            check_file_bytes(header, os.fstat(fd).st_size)
            image_id = hash_file_range(fd, header.manifest_offset, header.manifest_bytes)
            # From the file's start: a mapping's offset must be a multiple of the machine's page, maybe over 4 KiB.
            end = header.manifest_offset + header.manifest_bytes
            mapping = mmap.mmap(fd, end, access=mmap.ACCESS_READ)
            manifest = Manifest.parse_untrusted(
                memoryview(mapping)[header.manifest_offset :], image_id=image_id
            )
            check_identity(header, image_id, manifest.payload_bytes)
        except OSError as error:
            os.close(fd)
            raise ImageError(f"{path}: can't read the image: {error.strerror}") from error
        except DiskcastError as error:
            os.close(fd)
            raise type(error)(f"{path}: {error}") from error
        return cls(path, fd, header, manifest, mapping)

    def read_stored(self, block: int, into: memoryview) -> int:
        """Read the stored bytes of ``block`` into the start of ``into``.

        Returns:
            How many there are; 0 for a block of which nothing is stored.

        Raises:
            ImageDamagedError: the file ends within the block.
            StorageError: the disk failed.
        """
        offset = int(self.manifest.offsets[block])
        count = int(self.manifest.stored_bytes[block])
        self.read_payload(offset, into[:count])
        return count

    def read_payload(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the payload from ``offset``: the stored bytes of consecutive stored blocks.

        Raises:
            ImageDamagedError: the file ends there.
            StorageError: the disk failed.
        """
        self.read_file(self.header.payload_offset + offset, into)

    def read_file(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the file's bytes from ``offset``; errors as :meth:`read_payload`."""
        done = 0
        while done < len(into):
            try:
                count = os.preadv(self._fd, [into[done:]], offset + done)
            except OSError as error:
                raise StorageError(
                    f"{self.path}: can't read the image at offset {offset + done}: {error.strerror}; check the disk"
                ) from error
            if count == 0:
                raise ImageDamagedError(
                    f"{self.path}: the file ends before offset {offset + done}: truncated"
                )
            done += count

    def trim(self) -> None:
        """Give the manifest's mapped pages back, so that they don't count as this process's memory until next used.

        Sweeps over all rows call it now and then; always safe.
        """
        self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Close the file; the manifest stays usable."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hash_file_range(fd: int, offset: int, count: int) -> bytes:
    """BLAKE3 of ``count`` bytes of a file from ``offset``, read rather than mapped, in a few MB of memory.

    Raises:
        OSError: the file can't be read.
        ImageDamagedError: it ends early.
    """
    hasher = blake3(max_threads=blake3.AUTO)
    buffer = memoryview(bytearray(min(_HASH_BUFFER_BYTES, count)))
    done = 0
    while done < count:
        got = os.preadv(fd, [buffer[: count - done]], offset + done)
        if got == 0:
            raise ImageDamagedError(f"the file was truncated to {offset + done} bytes while it was read")
        hasher.update(buffer[:got])
        done += got
    return hasher.digest()
