"""Free ranges from the maps that partclone writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from protocol.packing.filesystems.area import Area
from protocol.packing.filesystems.superblocks import Range, Superblock, UsageUnknownError

_MAP_LINE: Final = re.compile(rb"0x([0-9A-Fa-f]{1,16})\s+0x([0-9A-Fa-f]{1,16})\s+([?+])")


def partclone_ranges(tool: str, area: Area) -> Iterator[Range]:
    """Yield the free ranges of partclone's "domain" map, in GNU ddrescue's format: ``+`` used, ``?`` free.

    Raises:
        UsageUnknownError: the output isn't such a map.
        ToolError: as :func:`protocol.program.system_tools.tool_lines`.
    """
    position = 0
    with area.stream_tool(
        tool,
        "--domain",
        "--source",
        area.tool_path,
        "--output",
        "-",
        "--logfile",
        "/dev/null",
        "--quiet",
    ) as lines:
        for line in lines:
            found = _MAP_LINE.fullmatch(line.strip())
            if not found:
                if line.startswith(b"#") or len(line.split()) == 2:  # heading; current position and status
                    continue
                raise UsageUnknownError(f"{tool} wrote something that isn't a map")
            start, size = int(found[1], 16), int(found[2], 16)
            if start != position:
                raise UsageUnknownError(f"{tool} wrote a map with gaps")
            position += size
            if found[3] == b"?" and size:
                yield start, position
    if not position:
        raise UsageUnknownError(f"{tool} wrote an empty map")


def exfat_ranges(area: Area, _superblock: Superblock, _min_bytes: int) -> Iterator[Range]:
    """Yield the free ranges of exFAT."""
    return partclone_ranges("partclone.exfat", area)
