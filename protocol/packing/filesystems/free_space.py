"""The free space of a filesystem, from its metadata, read by the tool for each filesystem.

A range counts as free only if a tool lists it and nothing contradicts. A tool that is missing, fails, hangs or lists
impossible ranges costs the time of packing free space, never data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.packing.filesystems.area import Area
from protocol.packing.filesystems.btrfs import btrfs_ranges
from protocol.packing.filesystems.ext import ext_ranges
from protocol.packing.filesystems.fat import fat_ranges
from protocol.packing.filesystems.ntfs import ntfs_ranges
from protocol.packing.filesystems.partclone import exfat_ranges
from protocol.packing.filesystems.superblocks import (
    Range,
    Superblock,
    UsageUnknownError,
    read_superblock_untrusted,
)
from protocol.packing.filesystems.xfs import xfs_ranges
from protocol.program.system_tools import ToolError, find_tool


@dataclasses.dataclass(frozen=True, slots=True)
class FreeSpace:
    """The free space of one filesystem."""

    ranges: NDArray[np.int64]
    """``int64[n, 2]``: half-open, in bytes from the area's start, ascending and disjoint; without short ranges."""
    free_bytes: int
    """All free bytes that the tool counted, short ranges included."""


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """The tools and the function that find the free space of one kind of filesystem."""

    tools: tuple[str, ...]
    """Programs, all of them required; the first one lists the free ranges."""
    packages: str
    """Debian packages that contain the tools."""
    free_ranges: Callable[[Area, Superblock, int], Iterable[Range]]
    takes_offset: bool = False
    """True if it can read a filesystem that starts in the middle of a file."""

    @property
    def name(self) -> str:
        """The tool that lists the free ranges."""
        return self.tools[0] if self.tools else "diskcast"

    def missing_tools(self) -> list[str]:
        """Return the programs that aren't installed."""
        return [tool for tool in self.tools if find_tool(tool) is None]


def find_free_space(filesystem: str, area: Area, min_bytes: int) -> FreeSpace:
    """Return the free space of ``filesystem`` in ``area``.

    Args:
        filesystem: a key of :data:`METHODS`.
        area: the range of the disk that it occupies.
        min_bytes: ranges shorter than this may be left out.

    Raises:
        UsageUnknownError: the free space can't be determined with certainty.
    """
    superblock = read_superblock_untrusted(filesystem, area.read, area.size_bytes)
    method = METHODS[filesystem]
    missing = method.missing_tools()
    if missing:
        raise UsageUnknownError(f"{' and '.join(missing)} not found: install {method.packages}")
    try:
        return _collect(method.free_ranges(area, superblock, min_bytes), superblock, min_bytes)
    except ToolError as error:
        raise UsageUnknownError(str(error)) from error


def _collect(ranges: Iterable[Range], superblock: Superblock, min_bytes: int) -> FreeSpace:
    """Join adjacent ranges, leave out short and always-used ones, and reject impossible ones."""
    found: list[Range] = []
    free_bytes = last_stop = 0
    start = stop = 0
    for next_start, next_stop in ranges:
        if not last_stop <= next_start < next_stop <= superblock.size_bytes:
            raise UsageUnknownError("its tool listed free ranges out of order or outside it: run its fsck")
        free_bytes += next_stop - next_start
        last_stop = next_stop
        if next_start == stop:
            stop = next_stop
            continue
        found += _subtract(start, stop, superblock.always_used, min_bytes)
        start, stop = next_start, next_stop
    found += _subtract(start, stop, superblock.always_used, min_bytes)
    if superblock.free_bytes is not None and free_bytes > superblock.free_bytes:
        raise UsageUnknownError(
            f"its tool counts {free_bytes} free bytes, but its superblock allows {superblock.free_bytes} at most: "
            "run its fsck"
        )
    return FreeSpace(np.array(found, np.int64).reshape(-1, 2), free_bytes)


def _subtract(start: int, stop: int, always_used: Sequence[Range], min_bytes: int) -> Iterator[Range]:
    """Yield the parts of a range that are outside ``always_used``, which is ascending, and long enough."""
    for used_start, used_stop in always_used:
        if used_start < stop and used_stop > start:
            if used_start - start >= min_bytes:
                yield start, used_start
            start = used_stop
    if stop - start >= min_bytes:
        yield start, stop


def _swap_ranges(_area: Area, superblock: Superblock, _min_bytes: int) -> Iterator[Range]:
    yield superblock.unit_bytes, superblock.size_bytes


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "ext4": Method(("dumpe2fs",), "e2fsprogs", ext_ranges, takes_offset=True),
        "xfs": Method(("xfs_db", "xfs_logprint"), "xfsprogs", xfs_ranges),
        "btrfs": Method(("btrfs",), "btrfs-progs", btrfs_ranges),
        "ntfs": Method(("partclone.ntfs", "ntfsinfo", "ntfscat"), "partclone ntfs-3g", ntfs_ranges),
        "vfat": Method((), "", fat_ranges, takes_offset=True),
        "exfat": Method(("partclone.exfat",), "partclone", exfat_ranges),
        "swap": Method((), "", _swap_ranges, takes_offset=True),
    }
)
"""One for each of :data:`protocol.disk.filesystem_magic.FILESYSTEMS`."""
