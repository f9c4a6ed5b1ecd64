"""Free ranges of NTFS, from partclone, once ntfs-3g's tools show that Windows shut the volume down."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from protocol.constants import KIB
from protocol.packing.filesystems.area import Area
from protocol.packing.filesystems.partclone import partclone_ranges
from protocol.packing.filesystems.superblocks import (
    FilesystemUncleanError,
    Range,
    Superblock,
    UsageUnknownError,
)
from protocol.program.system_tools import ToolError


def ntfs_ranges(area: Area, superblock: Superblock, _min_bytes: int) -> Iterator[Range]:
    """Yield the free ranges of a clean volume.

    partclone refuses a volume marked dirty, but neither a hibernated one nor one with an open journal.
    """
    information = b"\n".join(area.run_tool("ntfsinfo", "--mft", "--force", area.tool_path))
    flags = re.search(rb"Volume Flags: 0x([0-9A-Fa-f]{1,8})", information)
    free_count = re.search(rb"Free Clusters: (\d{1,20})", information)
    if not flags or not free_count:
        raise UsageUnknownError("ntfsinfo didn't count its free clusters")
    if int(flags[1], 16) & 1:
        raise FilesystemUncleanError(
            "it is marked dirty: boot Windows or run chkdsk /f, shut down, and pack again"
        )
    _check_hibernation(area)
    _check_journal(area)
    free_bytes = 0
    for start, stop in partclone_ranges("partclone.ntfs", area):
        free_bytes += stop - start
        yield start, stop
    if free_bytes > int(free_count[1]) * superblock.unit_bytes:
        raise UsageUnknownError(
            "partclone.ntfs and ntfsinfo count its free clusters differently: run chkdsk /f"
        )


def _file_start(area: Area, name: str, length: int) -> bytes | None:
    """Return the first bytes of a file in the volume's root; None if there is no such file."""
    try:
        return area.tool_output_start("ntfscat", area.tool_path, name, length=length)
    except ToolError as error:
        if "No such file" in str(error):
            return None
        raise


def _check_hibernation(area: Area) -> None:
    start = _file_start(area, "hiberfil.sys", 4)
    if start is not None and start.lower() == b"hibr":
        raise FilesystemUncleanError(
            "Windows is hibernated in it: switch off Fast Startup (powercfg /h off), shut down, and pack again"
        )


def _check_journal(area: Area) -> None:
    """Raise unless $LogFile has nothing to replay; the rule is ntfs-3g's."""
    data = _file_start(area, "$LogFile", 8 * KIB)
    if data is None or len(data) < 8 * KIB:
        raise UsageUnknownError("its journal can't be read: run chkdsk")
    if data.count(0xFF) == len(data):  # emptied
        return
    latest: tuple[int, bool] | None = None
    for offset in (0, struct.unpack_from("<I", data, 16)[0]):
        if data[offset : offset + 4] == b"RSTR" and offset + 26 <= len(data):
            area_offset = offset + struct.unpack_from("<H", data, offset + 24)[0]
            if area_offset + 16 <= len(data):
                sequence, _, _, client, flags = struct.unpack_from("<QHHHH", data, area_offset)
                latest = max(latest or (0, False), (sequence, client == 0xFFFF or bool(flags & 2)))
    if latest is None or not latest[1]:
        raise FilesystemUncleanError(
            "its journal is open: shut Windows down (not by Fast Startup), and pack again"
        )
