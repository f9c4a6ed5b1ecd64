"""Free ranges of ext2, ext3 and ext4, from ``dumpe2fs``."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from protocol.constants import KIB
from protocol.packing.filesystems.area import Area
from protocol.packing.filesystems.superblocks import Range, Superblock

_BLOCK_RANGE: Final = re.compile(rb"(\d{1,20})(?:-(\d{1,20}))?")


def ext_ranges(area: Area, superblock: Superblock, _min_bytes: int) -> Iterator[Range]:
    """Yield the free ranges group by group. With bigalloc, dumpe2fs names clusters by their first blocks."""
    data = area.read(KIB, KIB)
    bigalloc = struct.unpack_from("<I", data, 0x64)[0] & 0x200
    step = KIB << struct.unpack_from("<I", data, 0x1C)[0] if bigalloc else superblock.unit_bytes
    with area.stream_tool("dumpe2fs", f"{area.tool_path}?offset={area.tool_offset_bytes}") as lines:
        for line in lines:
            if line.startswith(b"  Free blocks: "):
                for found in _BLOCK_RANGE.finditer(line, 15):
                    first, last = int(found[1]), int(found[2] or found[1])
                    stop = last * superblock.unit_bytes + step
                    yield (
                        first * superblock.unit_bytes,
                        min(superblock.size_bytes, stop) if bigalloc else stop,
                    )
