"""Free ranges of btrfs on one device, from the trees that ``btrfs inspect-internal`` dumps."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator
from typing import Final

from protocol.constants import KIB
from protocol.packing.filesystems.area import Area
from protocol.packing.filesystems.superblocks import Range, Superblock, UsageUnknownError

_DUMP_TREE: Final = ("btrfs", "inspect-internal", "dump-tree", "--noscan")
"""Without a scan for other devices: a clone with the same UUID may be attached, and would be read instead."""

_CHUNK: Final = re.compile(rb"\s*item \d+ key \(FIRST_CHUNK_TREE CHUNK_ITEM (\d{1,20})\)")
_CHUNK_TYPE: Final = re.compile(rb"\s*length (\d{1,20}) owner \d+ stripe_len \d+ type (\S+)")
_STRIPE: Final = re.compile(rb"\s*stripe \d+ devid \d+ offset (\d{1,20})")
_EXTENT: Final = re.compile(rb"\s*item \d+ key \((\d{1,20}) (EXTENT_ITEM|METADATA_ITEM) (\d{1,20})\)")
_SUPPORTED_TYPES: Final = frozenset({b"DATA", b"METADATA", b"SYSTEM", b"single", b"DUP"})


@dataclasses.dataclass(slots=True)
class _Chunk:
    """A range of logical addresses and the device offsets of its copies."""

    start: int
    length: int = 0
    copies: list[int] = dataclasses.field(default_factory=list)

    @property
    def stop(self) -> int:
        return self.start + self.length

    def device_ranges(self, start: int, stop: int) -> list[Range]:
        """Return the device ranges of all copies of a range of logical addresses, which may be empty."""
        if start >= stop:
            return []
        return [(copy + start - self.start, copy + stop - self.start) for copy in self.copies]


def btrfs_ranges(area: Area, superblock: Superblock, min_bytes: int) -> Iterator[Range]:
    """Yield the ranges that neither an extent nor a copy of it occupies.

    Not by partclone 0.3.23: its map doesn't have the second copies of metadata (DUP, the default). Without the blocks
    that it calls free, ``btrfs check`` failed and a scrub found 76 errors, 8 of them uncorrectable.
    """
    chunks = sorted(_read_chunks(area), key=lambda chunk: chunk.start)
    node_bytes = struct.unpack("<I", area.read(64 * KIB + 148, 4))[0]
    used: list[Range] = []
    used_bytes = 0
    chunk_index = 0
    start = stop = 0  # logical addresses of the extents that are being joined
    with area.stream_tool(*_DUMP_TREE, "-t", "extent", area.tool_path) as lines:
        for line in lines:
            found = _EXTENT.match(line)
            if not found:
                continue
            next_start = int(found[1])
            length = int(found[3]) if found[2] == b"EXTENT_ITEM" else node_bytes
            used_bytes += length
            while chunk_index < len(chunks) and next_start >= chunks[chunk_index].stop:
                used += chunks[chunk_index].device_ranges(start, stop)
                start = stop = 0
                chunk_index += 1
            if chunk_index == len(chunks) or not (
                chunks[chunk_index].start <= next_start
                and stop <= next_start
                and next_start + length <= chunks[chunk_index].stop
            ):
                raise UsageUnknownError("some of its extents aren't in a chunk: run btrfs check")
            if stop and next_start - stop < min_bytes:  # no whole block fits between
                stop = next_start + length
            else:
                if stop:
                    used += chunks[chunk_index].device_ranges(start, stop)
                start, stop = next_start, next_start + length
    if stop:
        used += chunks[chunk_index].device_ranges(start, stop)
    if superblock.free_bytes is None or used_bytes != superblock.size_bytes - superblock.free_bytes:
        raise UsageUnknownError(
            "its extents and its superblock count used bytes differently: run btrfs check"
        )
    yield from _gaps(sorted(used), superblock.size_bytes)


def _read_chunks(area: Area) -> list[_Chunk]:
    chunks: list[_Chunk] = []
    for line in area.run_tool(*_DUMP_TREE, "-t", "chunk", area.tool_path):
        if found := _CHUNK.match(line):
            chunks.append(_Chunk(int(found[1])))
        elif chunks and (found := _CHUNK_TYPE.match(line)):
            chunks[-1].length = int(found[1])
            if not set(found[2].split(b"|")) <= _SUPPORTED_TYPES:
                raise UsageUnknownError(
                    f"its profile is {found[2].decode(errors='replace')}, made for several devices"
                )
        elif chunks and (found := _STRIPE.match(line)):
            chunks[-1].copies.append(int(found[1]))
    if not chunks or not all(chunk.length and 1 <= len(chunk.copies) <= 2 for chunk in chunks):
        raise UsageUnknownError("its chunks can't be read: run btrfs check")
    return chunks


def _gaps(used: list[Range], size_bytes: int) -> Iterator[Range]:
    """Yield the gaps between ascending ranges, which may overlap."""
    position = 0
    for start, stop in used:
        if start > position:
            yield position, start
        position = max(position, stop)
    if position < size_bytes:
        yield position, size_bytes
