"""Free ranges of XFS, from ``xfs_db``."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from protocol.packing.filesystems.area import Area
from protocol.packing.filesystems.superblocks import (
    FilesystemUncleanError,
    Range,
    Superblock,
    UsageUnknownError,
)


def xfs_ranges(area: Area, superblock: Superblock, _min_bytes: int) -> Iterator[Range]:
    """Yield the free ranges, sorted: xfs_db numbers blocks within each group, and lists them unsorted."""
    with area.stream_tool("xfs_logprint", "-t", area.tool_path, opens_for_writing=True) as lines:
        state = next((line for line in lines if b"state:" in line), b"")  # the log itself follows
    if b"<CLEAN>" not in state:
        raise FilesystemUncleanError(
            "its log has changes that aren't in its metadata yet: mount and unmount it, and pack again"
        )
    (group_blocks,) = struct.unpack(">I", area.read(84, 4))
    group_index = 0
    ranges: list[Range] = []
    with area.stream_tool("xfs_db", "-r", "-c", "freesp -d", area.tool_path) as lines:
        for line in lines:
            words = line.split()
            if len(words) != 3 or not all(word.isdigit() and len(word) < 20 for word in words):
                continue  # the heading, and the histogram after the list
            group, first, count = map(int, words)
            if group != group_index:
                yield from sorted(ranges)
                group_index, ranges = group, []
            if first + count > group_blocks:
                raise UsageUnknownError("xfs_db listed ranges outside its allocation groups: run xfs_repair")
            start = group * group_blocks + first
            ranges.append((start * superblock.unit_bytes, (start + count) * superblock.unit_bytes))
    yield from sorted(ranges)
