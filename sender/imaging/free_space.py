"""What of a filesystem is free, from its books: read by the tool that its own developers keep, by partclone, or by us.

A range counts as free only if a tool says so and nothing contradicts: a tool that is missing, fails, hangs, or says
what can't be, costs the time of packing free space, never data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import KIB
from protocol.disk.disk_reads import Read
from sender.imaging.superblocks import FilesystemHead, Range, UsageUnknownError, fat_geometry, read_head
from sender.imaging.system_tools import ToolError, find_tool, run_tool, tool_lines, tool_start


@dataclasses.dataclass(frozen=True, slots=True)
class Area:
    """Where a filesystem lies, and what tools are to open."""

    read: Read
    """Bytes from the area's start."""
    size_bytes: int
    tool_path: str
    """A device or file, of which the area is all from ``tool_offset_bytes``."""
    tool_offset_bytes: int = 0
    """Not 0 only for methods that can look at an offset."""
    tool_fds: tuple[int, ...] = ()
    """Descriptors that ``tool_path`` refers to."""


@dataclasses.dataclass(frozen=True, slots=True)
class FreeSpace:
    """What is free of one filesystem."""

    ranges: NDArray[np.int64]
    """``int64[n, 2]``, ascending and apart: half-open, in bytes from the area's start; short ones are left out."""
    free_bytes: int
    """All that the tool counted, short ranges too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """How one kind of filesystem is asked."""

    tools: tuple[str, ...]
    """Programs, all of which are needed; the first reads the free ranges."""
    packages: str
    """What to install, as Debian names it."""
    free_ranges: Callable[[Area, FilesystemHead, int], Iterable[Range]]
    takes_offset: bool = False
    """Whether it can look into the middle of a file."""

    @property
    def name(self) -> str:
        """The tool that counts."""
        return self.tools[0] if self.tools else "diskcast"

    def missing_tools(self) -> list[str]:
        """Programs that aren't installed."""
        return [tool for tool in self.tools if find_tool(tool) is None]


def find_free_space(filesystem: str, area: Area, min_bytes: int) -> FreeSpace:
    """What is free of ``filesystem`` in ``area``.

    Args:
        filesystem: a key of :data:`METHODS`.
        area: where it lies.
        min_bytes: ranges shorter than this may be left out.

    Raises:
        UsageUnknownError: it can't be learnt for sure.
    """
    head = read_head(filesystem, area.read, area.size_bytes)
    method = METHODS[filesystem]
    missing = method.missing_tools()
    if missing:
        raise UsageUnknownError(f"{' and '.join(missing)} not found: install {method.packages}")
    try:
        return _collect(method.free_ranges(area, head, min_bytes), head, min_bytes)
    except ToolError as error:
        raise UsageUnknownError(str(error)) from error


def _collect(ranges: Iterable[Range], head: FilesystemHead, min_bytes: int) -> FreeSpace:
    """Join what touches, leave out what is short or must be kept, refuse what can't be."""
    found: list[Range] = []
    free_bytes = last_stop = 0
    start = stop = 0
    for next_start, next_stop in ranges:
        if not last_stop <= next_start < next_stop <= head.size_bytes:
            raise UsageUnknownError("what its tool says is no ascending list of places in it")
        free_bytes += next_stop - next_start
        last_stop = next_stop
        if next_start == stop:
            stop = next_stop
            continue
        found += _outside(start, stop, head.kept, min_bytes)
        start, stop = next_start, next_stop
    found += _outside(start, stop, head.kept, min_bytes)
    if head.free_bytes is not None and free_bytes > head.free_bytes:
        raise UsageUnknownError(
            f"its tool counts {free_bytes} free bytes, but {head.free_bytes} are all that can be: run its fsck"
        )
    return FreeSpace(np.array(found, np.int64).reshape(-1, 2), free_bytes)


def _outside(start: int, stop: int, kept: Sequence[Range], min_bytes: int) -> Iterator[Range]:
    """The parts of a range that aren't in ``kept``, which is ascending, and aren't short."""
    for kept_start, kept_stop in kept:
        if kept_start < stop and kept_stop > start:
            if kept_start - start >= min_bytes:
                yield start, kept_start
            start = kept_stop
    if stop - start >= min_bytes:
        yield start, stop


def _tool(area: Area, *arguments: str) -> contextlib.closing[Generator[bytes, None, None]]:
    """The lines of a tool that is ended when its output is left."""
    return contextlib.closing(tool_lines(arguments, pass_fds=area.tool_fds))


# -- ext2, ext3, ext4 -----------------------------------------------------------------------------------------

_EXT_RANGE: Final = re.compile(rb"(\d{1,20})(?:-(\d{1,20}))?")


def _ext_ranges(area: Area, head: FilesystemHead, _min_bytes: int) -> Iterator[Range]:
    """From dumpe2fs, group by group. With bigalloc it names clusters by their first blocks."""
    data = area.read(KIB, KIB)
    bigalloc = struct.unpack_from("<I", data, 0x64)[0] & 0x200
    step = KIB << struct.unpack_from("<I", data, 0x1C)[0] if bigalloc else head.unit_bytes
    with _tool(area, "dumpe2fs", f"{area.tool_path}?offset={area.tool_offset_bytes}") as lines:
        for line in lines:
            if line.startswith(b"  Free blocks: "):
                for found in _EXT_RANGE.finditer(line, 15):
                    first, last = int(found[1]), int(found[2] or found[1])
                    stop = last * head.unit_bytes + step
                    yield first * head.unit_bytes, min(head.size_bytes, stop) if bigalloc else stop


# -- XFS ------------------------------------------------------------------------------------------------------


def _xfs_ranges(area: Area, head: FilesystemHead, _min_bytes: int) -> Iterator[Range]:
    """From xfs_db; its numbers count within allocation groups, and the groups' spare lists come unsorted."""
    with _tool(area, "xfs_logprint", "-t", area.tool_path) as lines:
        state = next((line for line in lines if b"state:" in line), b"")  # what follows is the log itself
    if b"<CLEAN>" not in state:
        raise UsageUnknownError(
            "its log holds what isn't in its books yet: mount and unmount it, and pack again"
        )
    (group_blocks,) = struct.unpack(">I", area.read(84, 4))
    group_index = 0
    ranges: list[Range] = []
    with _tool(area, "xfs_db", "-r", "-c", "freesp -d", area.tool_path) as lines:
        for line in lines:
            words = line.split()
            if len(words) != 3 or not all(word.isdigit() and len(word) < 20 for word in words):
                continue  # the heading, and the histogram behind the list
            group, first, count = map(int, words)
            if group != group_index:
                yield from sorted(ranges)
                group_index, ranges = group, []
            if first + count > group_blocks:
                raise UsageUnknownError("what its tool says is no list of places in it")
            start = group * group_blocks + first
            ranges.append((start * head.unit_bytes, (start + count) * head.unit_bytes))
    yield from sorted(ranges)


# -- btrfs ----------------------------------------------------------------------------------------------------

_BTRFS_DUMP: Final = ("btrfs", "inspect-internal", "dump-tree", "--noscan")
"""Without a scan for other devices: a clone with the same UUID may be attached, and would be read instead."""

_BTRFS_CHUNK: Final = re.compile(rb"\s*item \d+ key \(FIRST_CHUNK_TREE CHUNK_ITEM (\d{1,20})\)")
_BTRFS_CHUNK_TYPE: Final = re.compile(rb"\s*length (\d{1,20}) owner \d+ stripe_len \d+ type (\S+)")
_BTRFS_STRIPE: Final = re.compile(rb"\s*stripe \d+ devid \d+ offset (\d{1,20})")
_BTRFS_EXTENT: Final = re.compile(rb"\s*item \d+ key \((\d{1,20}) (EXTENT_ITEM|METADATA_ITEM) (\d{1,20})\)")
_BTRFS_TYPES: Final = frozenset({b"DATA", b"METADATA", b"SYSTEM", b"single", b"DUP"})


@dataclasses.dataclass(slots=True)
class _Chunk:
    """A range of btrfs's own addresses and where its copies are on the device."""

    start: int
    length: int = 0
    copies: list[int] = dataclasses.field(default_factory=list)


def _btrfs_ranges(area: Area, head: FilesystemHead, min_bytes: int) -> Iterator[Range]:
    """All that neither an extent nor its copy occupies.

    Not by partclone 0.3.23: its map lacks the second copies of metadata (DUP, the default). Without what it calls
    free, ``btrfs check`` failed and a scrub found 76 errors, 8 of them beyond repair.
    """
    chunks = sorted(_btrfs_chunks(area), key=lambda chunk: chunk.start)
    node_bytes = struct.unpack("<I", area.read(64 * KIB + 148, 4))[0]
    used: list[Range] = []
    used_bytes = 0
    chunk_index = 0
    start = stop = 0  # of what is collected, in btrfs's addresses
    with _tool(area, *_BTRFS_DUMP, "-t", "extent", area.tool_path) as lines:
        for line in lines:
            found = _BTRFS_EXTENT.match(line)
            if not found:
                continue
            next_start = int(found[1])
            length = int(found[3]) if found[2] == b"EXTENT_ITEM" else node_bytes
            used_bytes += length
            while chunk_index < len(chunks) and next_start >= _stop(chunks[chunk_index]):
                _place(chunks[chunk_index], start, stop, used)
                start = stop = 0
                chunk_index += 1
            if chunk_index == len(chunks) or not (
                chunks[chunk_index].start <= next_start
                and stop <= next_start
                and next_start + length <= _stop(chunks[chunk_index])
            ):
                raise UsageUnknownError("its extents aren't in its chunks: run btrfs check")
            if stop and next_start - stop < min_bytes:  # no whole block fits between
                stop = next_start + length
            else:
                if stop:
                    _place(chunks[chunk_index], start, stop, used)
                start, stop = next_start, next_start + length
    if stop:
        _place(chunks[chunk_index], start, stop, used)
    if head.free_bytes is None or used_bytes != head.size_bytes - head.free_bytes:
        raise UsageUnknownError("its extents aren't as many as its superblock says: run btrfs check")
    yield from _gaps(sorted(used), head.size_bytes)


def _btrfs_chunks(area: Area) -> list[_Chunk]:
    chunks: list[_Chunk] = []
    for line in run_tool([*_BTRFS_DUMP, "-t", "chunk", area.tool_path], pass_fds=area.tool_fds):
        if found := _BTRFS_CHUNK.match(line):
            chunks.append(_Chunk(int(found[1])))
        elif chunks and (found := _BTRFS_CHUNK_TYPE.match(line)):
            chunks[-1].length = int(found[1])
            if not set(found[2].split(b"|")) <= _BTRFS_TYPES:
                raise UsageUnknownError(
                    f"its profile is {found[2].decode(errors='replace')}, made for several devices"
                )
        elif chunks and (found := _BTRFS_STRIPE.match(line)):
            chunks[-1].copies.append(int(found[1]))
    if not chunks or not all(chunk.length and 1 <= len(chunk.copies) <= 2 for chunk in chunks):
        raise UsageUnknownError("its chunks can't be read: run btrfs check")
    return chunks


def _stop(chunk: _Chunk) -> int:
    return chunk.start + chunk.length


def _place(chunk: _Chunk, start: int, stop: int, used: list[Range]) -> None:
    """Add where a range of btrfs's addresses is on the device, every copy."""
    if start < stop:
        used += [(copy + start - chunk.start, copy + stop - chunk.start) for copy in chunk.copies]


def _gaps(used: list[Range], size_bytes: int) -> Iterator[Range]:
    """What is between ascending ranges, which may overlap."""
    position = 0
    for start, stop in used:
        if start > position:
            yield position, start
        position = max(position, stop)
    if position < size_bytes:
        yield position, size_bytes


# -- FAT ------------------------------------------------------------------------------------------------------

_FAT_ENTRIES_PER_STEP: Final = 1 << 20


def _fat_ranges(area: Area, _head: FilesystemHead, _min_bytes: int) -> Iterator[Range]:
    """From the allocation tables themselves: a cluster is free if every table says so.

    Not by partclone 0.3.23: of the 297 used clusters of a FAT12 its map called 75 free.
    """
    fat = fat_geometry(area.read)
    stop_entry = fat.cluster_count + 2
    step = stop_entry if fat.entry_bits == 12 else _FAT_ENTRIES_PER_STEP
    for first in range(0, stop_entry, step):
        count = min(step, stop_entry - first)
        free = np.ones(count, np.bool_)
        for table in range(fat.fat_count):
            offset = fat.fat_offset + table * fat.fat_bytes + first * fat.entry_bits // 8
            free &= (
                _fat_entries(area.read(offset, -(-count * fat.entry_bits // 8)), fat.entry_bits, count) == 0
            )
        if first == 0:
            free[:2] = False  # no clusters
        edges = np.flatnonzero(np.diff(free, prepend=False, append=False)).reshape(-1, 2)
        places = fat.data_offset + (edges + (first - 2)) * fat.cluster_bytes
        yield from map(tuple, places.tolist())


def _fat_entries(data: bytes, entry_bits: int, count: int) -> NDArray[np.uint32]:
    """``uint32[count]``: the entries that start ``data``."""
    if len(data) * 8 < count * entry_bits:
        raise UsageUnknownError("its allocation table is cut")
    if entry_bits == 12:
        octets = np.frombuffer(data, np.uint8)
        at = np.arange(count) * 3 // 2
        pairs = (
            octets[at].astype(np.uint32) | octets[np.minimum(at + 1, len(data) - 1)].astype(np.uint32) << 8
        )
        return np.where(np.arange(count) % 2, pairs >> 4, pairs & 0xFFF)
    if entry_bits == 16:
        return np.frombuffer(data, "<u2", count).astype(np.uint32)
    return np.frombuffer(data, "<u4", count) & np.uint32(0x0FFFFFFF)  # the highest bits are reserved


# -- by partclone ---------------------------------------------------------------------------------------------

_MAP_LINE: Final = re.compile(rb"0x([0-9A-Fa-f]{1,16})\s+0x([0-9A-Fa-f]{1,16})\s+([?+])")


def partclone_ranges(tool: str, area: Area) -> Iterator[Range]:
    """The free ranges of partclone's "domain" map, which is one of GNU ddrescue's: ``+`` used, ``?`` free.

    Raises:
        UsageUnknownError: what it wrote is no such map.
        ToolError: as :func:`sender.imaging.system_tools.tool_lines`.
    """
    position = 0
    with _tool(
        area,
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
                raise UsageUnknownError(f"{tool} wrote what is no map")
            start, size = int(found[1], 16), int(found[2], 16)
            if start != position:
                raise UsageUnknownError(f"{tool} wrote a map with gaps")
            position += size
            if found[3] == b"?" and size:
                yield start, position
    if not position:
        raise UsageUnknownError(f"{tool} wrote an empty map")


def _exfat_ranges(area: Area, _head: FilesystemHead, _min_bytes: int) -> Iterator[Range]:
    return partclone_ranges("partclone.exfat", area)


def _ntfs_ranges(area: Area, head: FilesystemHead, _min_bytes: int) -> Iterator[Range]:
    """By partclone, which refuses a volume marked dirty, but neither a hibernated one nor one with an open journal."""
    lines = run_tool(["ntfsinfo", "--mft", "--force", area.tool_path], pass_fds=area.tool_fds)
    information = b"\n".join(lines)
    flags = re.search(rb"Volume Flags: 0x([0-9A-Fa-f]{1,8})", information)
    free_count = re.search(rb"Free Clusters: (\d{1,20})", information)
    if not flags or not free_count:
        raise UsageUnknownError("ntfsinfo didn't count its free clusters")
    if int(flags[1], 16) & 1:
        raise UsageUnknownError(
            "it is marked dirty: boot Windows or run chkdsk /f, shut down, and pack again"
        )
    _check_ntfs_hibernation(area)
    _check_ntfs_journal(area)
    free_bytes = 0
    for start, stop in partclone_ranges("partclone.ntfs", area):
        free_bytes += stop - start
        yield start, stop
    if free_bytes > int(free_count[1]) * head.unit_bytes:
        raise UsageUnknownError(
            "partclone.ntfs and ntfsinfo count its free clusters differently: run chkdsk /f"
        )


def _file_start(area: Area, name: str, length: int) -> bytes | None:
    """The first bytes of a file in an NTFS volume's root; None if there is no such file."""
    try:
        return tool_start(["ntfscat", area.tool_path, name], length, pass_fds=area.tool_fds)
    except ToolError as error:
        if "No such file" in str(error):
            return None
        raise


def _check_ntfs_hibernation(area: Area) -> None:
    start = _file_start(area, "hiberfil.sys", 4)
    if start is not None and start.lower() == b"hibr":
        raise UsageUnknownError(
            "Windows hibernates in it: switch off Fast Startup (powercfg /h off), shut down, and pack again"
        )


def _check_ntfs_journal(area: Area) -> None:
    """Raise unless $LogFile says that nothing is to be replayed, as ntfs-3g judges it."""
    data = _file_start(area, "$LogFile", 8 * KIB)
    if data is None or len(data) < 8 * KIB:
        raise UsageUnknownError("its journal can't be read: run chkdsk")
    if data.count(0xFF) == len(data):  # emptied
        return
    newest: tuple[int, bool] | None = None
    for offset in (0, struct.unpack_from("<I", data, 16)[0]):
        if data[offset : offset + 4] == b"RSTR" and offset + 26 <= len(data):
            area_offset = offset + struct.unpack_from("<H", data, offset + 24)[0]
            if area_offset + 16 <= len(data):
                sequence, _, _, client, flags = struct.unpack_from("<QHHHH", data, area_offset)
                newest = max(newest or (0, False), (sequence, client == 0xFFFF or bool(flags & 2)))
    if newest is None or not newest[1]:
        raise UsageUnknownError(
            "its journal is open: shut Windows down (not by Fast Startup), and pack again"
        )


# -- swap -----------------------------------------------------------------------------------------------------


def _swap_ranges(_area: Area, head: FilesystemHead, _min_bytes: int) -> Iterator[Range]:
    yield head.unit_bytes, head.size_bytes


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "ext4": Method(("dumpe2fs",), "e2fsprogs", _ext_ranges, takes_offset=True),
        "xfs": Method(("xfs_db", "xfs_logprint"), "xfsprogs", _xfs_ranges),
        "btrfs": Method(("btrfs",), "btrfs-progs", _btrfs_ranges),
        "ntfs": Method(("partclone.ntfs", "ntfsinfo", "ntfscat"), "partclone ntfs-3g", _ntfs_ranges),
        "vfat": Method((), "", _fat_ranges, takes_offset=True),
        "exfat": Method(("partclone.exfat",), "partclone", _exfat_ranges),
        "swap": Method((), "", _swap_ranges, takes_offset=True),
    }
)
"""One for each of :data:`protocol.disk.filesystem_magic.FILESYSTEMS`."""
