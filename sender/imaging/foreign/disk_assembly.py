"""Assembly of a disk in a spool from its partition table, hidden sectors, partition images and swap areas."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import KIB, MIB
from protocol.errors import ForeignImageError
from protocol.image.provenance import SourceChecksums
from sender.imaging.foreign.partclone_format import ChecksumMode
from sender.imaging.foreign.partclone_reader import ByteStream, PartcloneReader
from sender.imaging.foreign.partition_dump import DumpedPartition, PartitionDump
from sender.imaging.foreign.partition_tables import DiskTable
from sender.imaging.foreign.spool import Spool

_CHUNK_BYTES: Final = 4 * MIB
_PROGRESS_BYTES: Final = 64 * MIB
_BOOT_SECTOR_BYTES: Final = 512
_PAGE_BYTES: Final = 4 * KIB
_SWAP_HEAD: Final = struct.Struct("<1024x III 16s 16s")
_SWAP_SIGNATURE: Final = b"SWAPSPACE2"
_SWAP_PAGES_MAX: Final = (1 << 32) - 1


class ContentKind(enum.Enum):
    """Form of a partition's content."""

    PARTCLONE = enum.auto()
    RAW = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class PartitionFiles:
    """The content of one partition."""

    number: int
    kind: ContentKind
    names: tuple[str, ...]
    """Files of the directory that are one stream, in order."""


@dataclasses.dataclass(frozen=True, slots=True)
class SwapArea:
    """A swap area, of which only the header matters."""

    number: int
    uuid: str = ""
    label: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class DiskDescription:
    """A disk as an image directory describes it."""

    name: str
    """The directory's name for messages."""
    dump: PartitionDump
    table: DiskTable
    contents: tuple[PartitionFiles, ...]
    swaps: tuple[SwapArea, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class AssembledDisk:
    """Facts of a disk that was assembled."""

    unused: NDArray[np.int64]
    """``int64[n, 2]``: half-open ranges in bytes that no filesystem uses."""
    checksums: SourceChecksums
    writers: tuple[str, ...]
    """Versions of partclone that wrote the images."""
    unchecked: tuple[int, ...]
    """Numbers of partitions whose content has no checksums."""


OpenStream = Callable[[tuple[str, ...]], contextlib.AbstractContextManager[ByteStream]]
"""Opens files of the directory as one stream, decompressed."""


def assemble_disk(
    disk: DiskDescription,
    spool: Spool,
    open_stream: OpenStream,
    on_progress: Callable[[int, int], None],
) -> AssembledDisk:
    """Write the disk into the spool.

    Raises:
        ForeignImageError: a partition image is damaged or doesn't fit its partition.
        SourceError: a file can't be read.
        StorageError: the spool's filesystem is full or failed.
    """
    return _Assembly(disk, spool, open_stream, on_progress).run()


class _Assembly:
    """One disk in progress."""

    def __init__(
        self,
        disk: DiskDescription,
        spool: Spool,
        open_stream: OpenStream,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._disk = disk
        self._spool = spool
        self._open_stream = open_stream
        self._on_progress = on_progress
        self._partitions = {part.number: part for part in disk.dump.areas}
        self._unused: list[NDArray[np.int64]] = []
        self._writers: set[str] = set()
        self._unchecked: list[int] = []
        self._done_bytes = self._shown_bytes = 0
        self._total_bytes = sum(self._size(self._partition(content.number)) for content in disk.contents)

    def run(self) -> AssembledDisk:
        """Write table, swap areas and contents."""
        self._spool.set_size(self._disk.table.disk_bytes)
        for offset, data in self._disk.table.writes:
            self._spool.write_at(offset, data)
        for swap in self._disk.swaps:
            self._write_swap(swap)
        for content in self._disk.contents:
            part = self._partition(content.number)
            self._done_bytes = sum(
                self._size(self._partition(other.number))
                for other in self._disk.contents
                if other.number < content.number
            )
            with self._open_stream(content.names) as stream:
                if content.kind is ContentKind.PARTCLONE:
                    self._restore(part, stream, content.names[0])
                else:
                    self._copy(part, stream, content.names[0])
        self._on_progress(self._total_bytes, self._total_bytes)
        is_checked = bool(self._disk.contents) and not self._unchecked
        return AssembledDisk(
            joined_ranges(self._unused),
            SourceChecksums.VERIFIED if is_checked else SourceChecksums.NONE,
            tuple(sorted(self._writers)),
            tuple(self._unchecked),
        )

    def _partition(self, number: int) -> DumpedPartition:
        part = self._partitions.get(number)
        if part is None:
            raise ForeignImageError(
                f"{self._disk.name}: an image of partition {number}, which the partition table doesn't have"
            )
        return part

    def _size(self, part: DumpedPartition) -> int:
        return part.sector_count * self._disk.dump.sector_bytes

    def _start(self, part: DumpedPartition) -> int:
        return part.start_sector * self._disk.dump.sector_bytes

    def _restore(self, part: DumpedPartition, stream: ByteStream, name: str) -> None:
        """Write the filesystem of a partclone image."""
        reader = PartcloneReader(stream, f"{self._disk.name}/{name}", self._size(part))
        header = reader.header
        self._unused += write_filesystem(reader, self._spool, self._start(part), self._show)
        if header.filesystem == "NTFS":
            self._write_backup_boot_sector(part, header.block_count * header.block_bytes)
        if header.tool_version:
            self._writers.add(f"partclone {header.tool_version}")
        if header.checksum is not ChecksumMode.CRC32:
            self._unchecked.append(part.number)

    def _write_backup_boot_sector(self, part: DumpedPartition, written_bytes: int) -> None:
        """Write NTFS's second boot sector, which is behind the last cluster and therefore in no partclone image."""
        start = self._start(part)
        boot = os.pread(self._spool.fd, _BOOT_SECTOR_BYTES, start)
        sector_bytes, sector_count = (
            struct.unpack_from("<H", boot, 11)[0],
            struct.unpack_from("<Q", boot, 40)[0],
        )
        place = sector_count * sector_bytes
        if boot[3:11] == b"NTFS    " and written_bytes <= place <= self._size(part) - _BOOT_SECTOR_BYTES:
            self._spool.write_at(start + place, boot)

    def _copy(self, part: DumpedPartition, stream: ByteStream, name: str) -> None:
        """Write a partition of which the directory has every byte."""
        size_bytes = self._size(part)
        size_read = 0
        for offset, data in read_chunks(stream):
            if offset + len(data) > size_bytes:
                raise ForeignImageError(
                    f"{self._disk.name}/{name}: more data than partition {part.number} has, {size_bytes} bytes"
                )
            self._spool.write_at(self._start(part) + offset, data)
            self._show(offset + len(data))
            size_read = offset + len(data)
        if size_read < size_bytes:
            raise ForeignImageError(
                f"{self._disk.name}/{name}: truncated: {size_read} of the {size_bytes} bytes of partition {part.number}"
            )
        self._unchecked.append(part.number)

    def _write_swap(self, swap: SwapArea) -> None:
        part = self._partition(swap.number)
        start, size_bytes = self._start(part), self._size(part)
        try:
            head = build_swap_header(swap, size_bytes)
        except ValueError as error:
            raise ForeignImageError(f"{self._disk.name}: swap on partition {swap.number}: {error}") from error
        self._spool.write_at(start, head)
        self._unused.append(np.array([[start + len(head), start + size_bytes]], np.int64))

    def _show(self, position: int) -> None:
        done_bytes = self._done_bytes + position
        if done_bytes - self._shown_bytes >= _PROGRESS_BYTES:
            self._shown_bytes = done_bytes
            self._on_progress(done_bytes, self._total_bytes)


def write_filesystem(
    reader: PartcloneReader, spool: Spool, start_bytes: int, on_written: Callable[[int], None]
) -> list[NDArray[np.int64]]:
    """Write a filesystem at ``start_bytes``; return the ranges of the spool that it doesn't use.

    Args:
        reader: the filesystem's image, of which no data was read yet.
        spool: the disk.
        start_bytes: place of the filesystem.
        on_written: called now and then with the position in the filesystem.

    Raises:
        ForeignImageError: the image is damaged.
        StorageError: the spool's filesystem is full or failed.
    """
    shown = 0
    for offset, data in reader.runs_untrusted():
        spool.write_at(start_bytes + offset, data)
        if offset - shown >= _PROGRESS_BYTES:
            shown = offset
            on_written(offset)
    unused = []
    position = start_bytes
    for ranges in reader.used_ranges():
        edges = np.concatenate([[position], (start_bytes + ranges).ravel()])
        position = int(edges[-1])
        free = edges[:-1].reshape(-1, 2)
        unused.append(free[free[:, 0] < free[:, 1]])
    stop = start_bytes + reader.header.block_count * reader.header.block_bytes
    if position < stop:
        unused.append(np.array([[position, stop]], np.int64))
    return unused


def joined_ranges(pieces: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return one ascending array of ranges."""
    ranges = np.concatenate(pieces) if pieces else np.empty((0, 2), np.int64)
    return ranges[np.argsort(ranges[:, 0], kind="stable")]


def read_chunks(stream: ByteStream) -> Iterator[tuple[int, memoryview]]:
    """Yield offsets and data of a stream; the data is valid until the next step."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    offset = 0
    while count := stream.readinto(buffer):
        yield offset, buffer[:count]
        offset += count


def build_swap_header(swap: SwapArea, size_bytes: int) -> bytes:
    """Return the first page of a swap area as ``mkswap`` writes it.

    Raises:
        ValueError: the UUID or the label isn't valid, or the area is too small.
    """
    page_count = min(size_bytes // _PAGE_BYTES, _SWAP_PAGES_MAX)
    if page_count < 10:
        raise ValueError(f"{size_bytes} bytes are too few")
    identity = uuid.UUID(swap.uuid).bytes if swap.uuid else bytes(16)
    label = swap.label.encode()
    if len(label) > 16:
        raise ValueError("the label has more than 16 bytes")
    page = bytearray(_PAGE_BYTES)
    _SWAP_HEAD.pack_into(page, 0, 1, page_count - 1, 0, identity, label)
    page[-len(_SWAP_SIGNATURE) :] = _SWAP_SIGNATURE
    return bytes(page)
