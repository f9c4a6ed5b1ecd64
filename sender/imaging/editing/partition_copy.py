"""A sparse copy of one partition of an image, for tools that edit its filesystem in the sandbox.

The copy is a file without a name: nothing is left behind however the program ends. Tools get its descriptor, nothing is
mounted, and no privilege is needed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from protocol.constants import IMAGE_BYTES_MAX, MIB
from protocol.disk.partition_table import Partition
from protocol.errors import ImageDamagedError
from protocol.packing.filesystems.area import Area
from protocol.packing.filesystems.free_space import find_free_space
from protocol.program.sandbox import ForeignTool
from sender.imaging.foreign.spool import Spool
from sender.imaging.verified_blocks import VerifiedBlocks

_PIECE_BYTES: Final = MIB
"""Bytes per write of zeros."""
_ZEROS: Final = bytes(_PIECE_BYTES)


class PartitionCopy:
    """A copy of a partition, as a context manager.

    Attributes:
        part: the partition.
        free: ``int64[n, 2]``: ranges that the filesystem doesn't use, in bytes from the partition's start; set by
            :meth:`find_free`.
    """

    def __init__(
        self, blocks: VerifiedBlocks, part: Partition, directory: Path, *, allow_unsandboxed: bool = False
    ) -> None:
        """Copy nothing yet: see :meth:`fill`.

        Args:
            blocks: the image.
            part: the partition, or the whole disk.
            directory: folder on a filesystem with space for the partition's content.
            allow_unsandboxed: see :func:`protocol.program.sandbox.require_sandbox`.

        Raises:
            ConfigurationError: no file can be created there.
        """
        self.part = part
        self.free: NDArray[np.int64] = np.empty((0, 2), np.int64)
        self._blocks = blocks
        self._allow_unsandboxed = allow_unsandboxed
        self._spool = Spool(directory, IMAGE_BYTES_MAX)

    @property
    def fd(self) -> int:
        """The copy, open for reading and writing."""
        return self._spool.fd

    @property
    def path(self) -> str:
        """The copy's path for tools."""
        return f"/proc/self/fd/{self.fd}"

    def fill(self, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Copy the partition's content, every block checked; ``on_progress`` gets the raw bytes of each block.

        Raises:
            ImageDamagedError: a block doesn't match its hashes.
            StorageError: a disk is full or failed.
        """
        manifest = self._blocks.image.manifest
        self._spool.set_size(self.part.size_bytes)
        first = self.part.start_bytes // manifest.block_bytes
        stop = -(-self.part.stop_bytes // manifest.block_bytes)
        for block in (first + np.flatnonzero(manifest.stored_mask[first:stop])).tolist():
            raw = memoryview(self._blocks.read(block))
            start_bytes = block * manifest.block_bytes
            low = max(0, self.part.start_bytes - start_bytes)
            high = min(len(raw), self.part.stop_bytes - start_bytes)
            self._spool.write_at(start_bytes + low - self.part.start_bytes, raw[low:high])
            on_progress(len(raw))

    def read(self, offset: int, length: int) -> bytes:
        """Return a range of the partition, shorter at its end."""
        return os.pread(self.fd, max(0, min(length, self.part.size_bytes - offset)), offset)

    def zero(self, ranges: Iterable[Sequence[int]]) -> int:
        """Overwrite ranges with zeros, except for holes; return the number of bytes that had content.

        Raises:
            ImageDamagedError: a range is outside the partition.
        """
        changed_bytes = 0
        for start, stop in ranges:
            if not 0 <= start <= stop <= self.part.size_bytes:
                raise ImageDamagedError("a file of the image is outside its partition")
            for low, high in self._data_ranges(int(start), int(stop)):
                changed_bytes += self._zero_data(low, high)
        return changed_bytes

    def _zero_data(self, start: int, stop: int) -> int:
        changed_bytes = 0
        while start < stop:
            count = min(_PIECE_BYTES, stop - start)
            if os.pread(self.fd, count, start) != _ZEROS[:count]:
                self._spool.overwrite_at(start, memoryview(_ZEROS)[:count])
                changed_bytes += count
            start += count
        return changed_bytes

    def _data_ranges(self, start: int, stop: int) -> Iterable[tuple[int, int]]:
        while start < stop:
            try:
                low = os.lseek(self.fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end
                    return
                raise
            if low >= stop:
                return
            high = min(stop, os.lseek(self.fd, low, os.SEEK_HOLE))
            yield low, high
            start = high

    def reader(self, *arguments: str) -> ForeignTool:
        """Return a tool that reads the copy at :attr:`path`."""
        return ForeignTool(arguments, reads=(self.fd,), allow_unsandboxed=self._allow_unsandboxed)

    def writer(self, *arguments: str, stdin_fd: int) -> ForeignTool:
        """Return a tool that edits the copy at :attr:`path`."""
        return ForeignTool(
            arguments,
            writes=(self.fd,),
            stdin_fd=stdin_fd,
            written_bytes_max=self.part.size_bytes,
            allow_unsandboxed=self._allow_unsandboxed,
        )

    def find_free(self) -> None:
        """Find the ranges that the filesystem doesn't use.

        Raises:
            UsageUnknownError: they can't be determined; the message is the reason.
        """
        area = Area(self.read, self.part.size_bytes, self.path, self.reader().confinement(), 0, (self.fd,))
        self.free = find_free_space(self.part.filesystem, area, 1).ranges

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.__exit__(kind, error, trace)


def stored_raw_bytes(blocks: VerifiedBlocks, part: Partition) -> int:
    """Return the raw bytes that :meth:`PartitionCopy.fill` copies."""
    manifest = blocks.image.manifest
    first, stop = part.start_bytes // manifest.block_bytes, -(-part.stop_bytes // manifest.block_bytes)
    return int(np.count_nonzero(manifest.stored_mask[first:stop])) * manifest.block_bytes
