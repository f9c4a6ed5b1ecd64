"""Which blocks of a source no filesystem uses: they needn't be read, kept or sent."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.disk.disk_reads import Read, reader_from
from protocol.disk.filesystem_magic import container_signature, detect_filesystem, filesystem_signatures
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.shared.units import format_bytes
from sender.imaging.free_space import METHODS, Area, find_free_space
from sender.imaging.source import Source
from sender.imaging.superblocks import UsageUnknownError
from sender.imaging.system_tools import ToolError, run_tool

_SPREAD_TYPES: Final = frozenset(
    {
        "0x42",
        "AF9B60A0-1431-4F62-BC68-3311714A69AD",
        "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3",
        "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D",
    }
)
"""Partitions of Windows's dynamic disks and storage spaces: a volume may go on elsewhere, with others in between."""

_SECTOR_BYTES: Final = 512


@dataclasses.dataclass(frozen=True, slots=True)
class AreaUsage:
    """What is known of one partition, or of the whole disk if it has none."""

    number: int
    """The partition's; 0 for the disk itself."""
    size_bytes: int
    filesystem: str
    """Empty if unknown."""
    used_bytes: int | None = None
    """As its filesystem counts; None if all of it is kept."""
    learnt_by: str = ""
    """The tool that counted."""
    kept_because: str = ""
    """Why all of it is kept."""

    def to_json(self) -> dict[str, object]:
        """For ``--json``."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        place = f"partition {self.number}" if self.number else "disk"
        what = f"{place}: {self.filesystem or 'unknown'}, {format_bytes(self.size_bytes)}"
        if self.used_bytes is None:
            return f"{what}, kept whole: {self.kept_because}"
        return f"{what}, of which {format_bytes(self.used_bytes)} used (counted by {self.learnt_by})"


@dataclasses.dataclass(frozen=True, slots=True)
class UnusedBlocks:
    """The blocks that lie in free space as a whole, and how that is known."""

    ranges: NDArray[np.int64]
    """``int64[n, 2]``: half-open ranges of blocks, ascending and apart."""
    areas: tuple[AreaUsage, ...]


NO_UNUSED: Final = UnusedBlocks(np.empty((0, 2), np.int64), ())
"""Every block is kept."""


def find_unused_blocks(
    source: Source, layout: DiskLayout, block_bytes: int, *, may_change: bool = False
) -> UnusedBlocks:
    """Ask every filesystem of ``source`` what it doesn't use; what can't be learnt for sure is kept.

    Only the filesystems' own books are read. With root rights tools are given read-only loop devices, so that none
    can write, and partitions can be looked into; without, only what tools can open themselves.

    Args:
        source: the disk.
        layout: what it consists of.
        block_bytes: of the image.
        may_change: something writes to the disk meanwhile: then nothing of it is taken for free.

    Raises:
        SourceError: the disk can't be read.
    """
    areas = _areas(source, layout)
    kept_because = _obstacle(source, layout, may_change=may_change)
    usages, ranges = [], []
    for part in areas:
        usage, found = _ask(source, part, areas, block_bytes, kept_because)
        usages.append(usage)
        ranges.append(part.start_bytes + found)
    joined = np.concatenate(ranges) if ranges else np.empty((0, 2), np.int64)
    return UnusedBlocks(_whole_blocks(joined, block_bytes, source.raw_bytes), tuple(usages))


def _areas(source: Source, layout: DiskLayout) -> tuple[Partition, ...]:
    """Where filesystems may be."""
    if layout.table is TableKind.NONE:
        return (Partition(0, 0, source.raw_bytes, "", "", layout.filesystem),)
    return tuple(part for part in layout.partitions if not part.is_extended)


def _obstacle(source: Source, layout: DiskLayout, *, may_change: bool) -> str:
    """What makes all of the disk doubtful; empty for nothing."""
    if may_change:
        return "the source is mounted writable"
    container = container_signature(source.read, source.raw_bytes)
    if container:
        return f"the disk belongs to {container}"
    if layout.table is TableKind.MBR:
        filesystem = detect_filesystem(source.read)
        if filesystem:
            return (
                f"the disk has both a partition table and the mark of a filesystem ({filesystem}): see wipefs"
            )
    return ""


def _ask(
    source: Source, part: Partition, areas: tuple[Partition, ...], block_bytes: int, kept_because: str
) -> tuple[AreaUsage, NDArray[np.int64]]:
    read = reader_from(source.read, part.start_bytes, part.size_bytes)
    try:
        if kept_because:
            raise UsageUnknownError(kept_because)
        _check_part(part, areas, read)
        with _opened(source, part, read) as area:
            free = find_free_space(part.filesystem, area, block_bytes)
    except UsageUnknownError as error:
        usage = AreaUsage(part.number, part.size_bytes, part.filesystem, kept_because=str(error))
        return usage, np.empty((0, 2), np.int64)
    used_bytes = part.size_bytes - free.free_bytes
    learnt_by = METHODS[part.filesystem].name
    return AreaUsage(part.number, part.size_bytes, part.filesystem, used_bytes, learnt_by), free.ranges


def _check_part(part: Partition, areas: tuple[Partition, ...], read: Read) -> None:
    """Raise unless the partition alone holds one filesystem that is known."""
    if any(
        other is not part and other.start_bytes < part.stop_bytes and part.start_bytes < other.stop_bytes
        for other in areas
    ):
        raise UsageUnknownError("it overlaps another partition")
    if part.type in _SPREAD_TYPES:
        raise UsageUnknownError("it is part of a Windows dynamic disk or storage space")
    container = container_signature(read, part.size_bytes)
    if container:
        raise UsageUnknownError(f"it belongs to {container}, which isn't looked into")
    if not part.filesystem:
        found = filesystem_signatures(read)
        if found:
            raise UsageUnknownError(
                f"it has the marks of several filesystems ({', '.join(found)}): see wipefs"
            )
        raise UsageUnknownError("no filesystem that is known here")


@contextlib.contextmanager
def _opened(source: Source, part: Partition, read: Read) -> Iterator[Area]:
    """The partition as tools can open it."""
    method = METHODS[part.filesystem]
    path, fds = f"/proc/self/fd/{source.fd}", (source.fd,)
    if method.takes_offset or (part.start_bytes == 0 and os.geteuid() != 0):
        yield Area(read, part.size_bytes, path, part.start_bytes, fds)
        return
    if os.geteuid() != 0:
        raise UsageUnknownError("only root can look into a partition: it needs a loop device")
    with contextlib.ExitStack() as stack:
        try:
            device = stack.enter_context(_loop_device(source, part))
        except ToolError as error:
            if part.start_bytes:
                raise UsageUnknownError(str(error)) from error
            yield Area(read, part.size_bytes, path, 0, fds)  # no loop devices here, as in a container
            return
        yield Area(read, part.size_bytes, device)


@contextlib.contextmanager
def _loop_device(source: Source, part: Partition) -> Iterator[str]:
    """A read-only loop device over one partition; it ends with this process, however that ends."""
    size_bytes = part.size_bytes // _SECTOR_BYTES * _SECTOR_BYTES
    (line,) = run_tool(
        [
            *(
                "losetup",
                "--read-only",
                "--find",
                "--show",
                "--sector-size",
                str(source.logical_sector_bytes),
            ),
            *(
                "--offset",
                str(part.start_bytes),
                "--sizelimit",
                str(size_bytes),
                f"/proc/self/fd/{source.fd}",
            ),
        ],
        pass_fds=(source.fd,),
    )
    device = line.decode()
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        with contextlib.suppress(ToolError):
            run_tool(["losetup", "--detach", device])
        raise ToolError(f"{device} can't be opened: {error.strerror}") from error
    try:
        run_tool(["losetup", "--detach", device])  # takes effect when the last one closes it
        yield device
    finally:
        os.close(fd)


def _whole_blocks(free: NDArray[np.int64], block_bytes: int, raw_bytes: int) -> NDArray[np.int64]:
    """The blocks that lie in free ranges as a whole; the disk's short last block too."""
    free = free[np.argsort(free[:, 0], kind="stable")]
    stop = np.where(free[:, 1] == raw_bytes, raw_bytes + block_bytes - 1, free[:, 1]) // block_bytes
    blocks = np.stack([-(-free[:, 0] // block_bytes), stop], axis=1)
    return np.ascontiguousarray(blocks[blocks[:, 0] < blocks[:, 1]])
