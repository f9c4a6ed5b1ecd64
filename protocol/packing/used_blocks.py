"""Search for the blocks of a source that no filesystem uses: they aren't read, stored or sent."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.disk.disk_reads import Read, reader_from
from protocol.disk.filesystem_magic import container_signature, detect_filesystem, filesystem_signatures
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.packing.filesystems.area import Area
from protocol.packing.filesystems.free_space import METHODS, find_free_space
from protocol.packing.filesystems.superblocks import FilesystemUncleanError, UsageUnknownError
from protocol.packing.source import Source
from protocol.program.confinement import Confinement, device_of
from protocol.program.loop_device import LoopDeviceError, loop_device
from protocol.shared.units import format_bytes

_DYNAMIC_DISK_TYPES: Final = frozenset(
    {
        "0x42",
        "AF9B60A0-1431-4F62-BC68-3311714A69AD",
        "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3",
        "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D",
    }
)
"""Partition types of Windows's dynamic disks and storage spaces, whose volumes may span several ranges."""

_SECTOR_BYTES: Final = 512


@dataclasses.dataclass(frozen=True, slots=True)
class AreaUsage:
    """The used space of one partition, or of the whole disk if it has no partitions."""

    number: int
    """Partition number; 0 for the whole disk."""
    size_bytes: int
    filesystem: str
    """Empty if unknown."""
    used_bytes: int | None = None
    """Bytes that the filesystem uses; None if the area is packed completely."""
    learnt_by: str = ""
    """The tool that listed the free ranges."""
    kept_because: str = ""
    """The reason for packing the area completely."""
    unclean: bool = False
    """True if the reason is a filesystem that wasn't unmounted cleanly."""

    def to_json(self) -> dict[str, object]:
        """Return the fields as ``--json`` prints them."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        place = f"partition {self.number}" if self.number else "disk"
        area = f"{place}: {self.filesystem or 'unknown'}, {format_bytes(self.size_bytes)}"
        if self.used_bytes is None:
            return f"{area}, packed completely: {self.kept_because}"
        return f"{area}, {format_bytes(self.used_bytes)} used (counted by {self.learnt_by})"


@dataclasses.dataclass(frozen=True, slots=True)
class UnusedBlocks:
    """The blocks that are entirely in free space, and the areas of the source."""

    ranges: NDArray[np.int64]
    """``int64[n, 2]``: half-open ranges of blocks, ascending and disjoint."""
    areas: tuple[AreaUsage, ...]

    def with_free_ranges(self, free: NDArray[np.int64], block_bytes: int, raw_bytes: int) -> UnusedBlocks:
        """Return these blocks and those that are entirely in one of ``free``, byte ranges of the disk."""
        ranges = np.concatenate([self.ranges, whole_blocks(free, block_bytes, raw_bytes)])
        ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
        stops = np.maximum.accumulate(ranges[:, 1])
        starts_run = np.append(True, ranges[1:, 0] > stops[:-1])[: len(ranges)]
        ends_run = np.append(starts_run[1:], True)[: len(ranges)]
        return UnusedBlocks(np.stack([ranges[starts_run, 0], stops[ends_run]], axis=1), self.areas)


NO_UNUSED: Final = UnusedBlocks(np.empty((0, 2), np.int64), ())
"""All blocks are packed."""


def find_unused_blocks(
    source: Source, layout: DiskLayout, block_bytes: int, *, may_change: bool = False
) -> UnusedBlocks:
    """Find the blocks that no filesystem of ``source`` uses; in doubt, a block counts as used.

    Only the filesystems' metadata is read. As root, tools get read-only loop devices, which give them access to single
    partitions and keep them from writing. Without root, only filesystems whose tools can open the source are read.

    Args:
        source: the disk.
        layout: its partitions or its filesystem.
        block_bytes: the image's block size.
        may_change: something may write to the disk during packing: then all blocks count as used.

    Raises:
        SourceError: the disk can't be read.
    """
    areas = _areas(source, layout)
    kept_because = _reason_to_keep_all(source, layout, may_change=may_change)
    usages, ranges = [], []
    for part in areas:
        usage, found = _examine(source, part, areas, block_bytes, kept_because)
        usages.append(usage)
        ranges.append(part.start_bytes + found)
    joined = np.concatenate(ranges) if ranges else np.empty((0, 2), np.int64)
    return UnusedBlocks(whole_blocks(joined, block_bytes, source.raw_bytes), tuple(usages))


def _areas(source: Source, layout: DiskLayout) -> tuple[Partition, ...]:
    """Return the areas that may have a filesystem."""
    if layout.table is TableKind.NONE:
        return (Partition(0, 0, source.raw_bytes, "", "", layout.filesystem),)
    return tuple(part for part in layout.partitions if not part.is_extended)


def _reason_to_keep_all(source: Source, layout: DiskLayout, *, may_change: bool) -> str:
    """Return the reason for packing the whole disk completely; empty for none."""
    if may_change:
        return "the source is mounted writable"
    container = container_signature(source.read, source.raw_bytes)
    if container:
        return f"the disk belongs to {container}"
    if layout.table is TableKind.MBR:
        filesystem = detect_filesystem(source.read)
        if filesystem:
            return f"the disk has both a partition table and the signature of a filesystem ({filesystem}): see wipefs"
    return ""


def _examine(
    source: Source, part: Partition, areas: tuple[Partition, ...], block_bytes: int, kept_because: str
) -> tuple[AreaUsage, NDArray[np.int64]]:
    read = reader_from(source.read, part.start_bytes, part.size_bytes)
    try:
        if kept_because:
            raise UsageUnknownError(kept_because)
        _check_part(part, areas, read)
        with _open_area(source, part, read) as area:
            free = find_free_space(part.filesystem, area, block_bytes)
    except UsageUnknownError as error:
        unclean = isinstance(error, FilesystemUncleanError)
        usage = AreaUsage(
            part.number, part.size_bytes, part.filesystem, kept_because=str(error), unclean=unclean
        )
        return usage, np.empty((0, 2), np.int64)
    used_bytes = part.size_bytes - free.free_bytes
    learnt_by = METHODS[part.filesystem].name
    return AreaUsage(part.number, part.size_bytes, part.filesystem, used_bytes, learnt_by), free.ranges


def _check_part(part: Partition, areas: tuple[Partition, ...], read: Read) -> None:
    """Raise unless the partition has exactly one supported filesystem and overlaps no other partition."""
    if any(
        other is not part and other.start_bytes < part.stop_bytes and part.start_bytes < other.stop_bytes
        for other in areas
    ):
        raise UsageUnknownError("it overlaps another partition")
    if part.type in _DYNAMIC_DISK_TYPES:
        raise UsageUnknownError("it is part of a Windows dynamic disk or storage space")
    container = container_signature(read, part.size_bytes)
    if container:
        raise UsageUnknownError(f"it belongs to {container}, which isn't supported")
    if not part.filesystem:
        found = filesystem_signatures(read)
        if found:
            raise UsageUnknownError(
                f"it has the signatures of several filesystems ({', '.join(found)}): see wipefs"
            )
        raise UsageUnknownError("no supported filesystem was found")


@contextlib.contextmanager
def _open_area(source: Source, part: Partition, read: Read) -> Iterator[Area]:
    """Open the partition for tools, through a loop device where necessary."""
    method = METHODS[part.filesystem]
    path, fds = f"/proc/self/fd/{source.fd}", (source.fd,)
    # Its owner may open the source again through the descriptor; no other user of the tool could.
    owner = Confinement(user_id=os.fstat(source.fd).st_uid, is_required=False)
    is_root = os.geteuid() == 0
    if not method.tools or (not is_root and (method.takes_offset or not part.start_bytes)):
        yield Area(read, part.size_bytes, path, owner, part.start_bytes, fds)
        return
    if not is_root:
        raise UsageUnknownError("reading a single partition needs a loop device: pack as root")
    with contextlib.ExitStack() as stack:
        try:
            device = stack.enter_context(_loop_device(source, part))
        except LoopDeviceError as error:  # no loop devices here, as in a container
            if part.start_bytes and not method.takes_offset:
                raise UsageUnknownError(str(error)) from error
            yield Area(read, part.size_bytes, path, owner, part.start_bytes, fds)
            return
        # xfs_logprint opens it for writing; the loop device itself is read-only.
        confinement = Confinement((device_of(device, writable=True),))
        yield Area(read, part.size_bytes, str(device), confinement)


def _loop_device(source: Source, part: Partition) -> contextlib.AbstractContextManager[Path]:
    """Attach a read-only loop device to one partition."""
    return loop_device(
        source.fd,
        part.start_bytes,
        part.size_bytes // _SECTOR_BYTES * _SECTOR_BYTES,
        sector_bytes=source.logical_sector_bytes,
        name=f"diskcast: {source.path}",
        writable=False,
    )


def whole_blocks(free: NDArray[np.int64], block_bytes: int, raw_bytes: int) -> NDArray[np.int64]:
    """Return ``int64[n, 2]``: ranges of blocks that are entirely in one free range; the short last block is one too."""
    free = free[np.argsort(free[:, 0], kind="stable")]
    stop = np.where(free[:, 1] == raw_bytes, raw_bytes + block_bytes - 1, free[:, 1]) // block_bytes
    blocks = np.stack([-(-free[:, 0] // block_bytes), stop], axis=1)
    return np.ascontiguousarray(blocks[blocks[:, 0] < blocks[:, 1]])
