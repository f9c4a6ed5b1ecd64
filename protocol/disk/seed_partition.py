"""The seed partition: room for the settings of one machine, added to the partition table of a golden image.

The partition has zeros in the image, so that an image without a patch boots as before; a machine patch makes it a
NoCloud seed. It lies in the first gap between the partitions that is large enough, otherwise behind the last one on a
disk that grows for it. The other partitions stay as they are.
"""

from __future__ import annotations

import dataclasses
import struct
import uuid
import zlib
from typing import Final

from blake3 import blake3

from protocol.constants import MIB
from protocol.disk.disk_reads import Read
from protocol.disk.gpt import (
    GptHeader,
    protective_record,
    read_entries_untrusted,
    read_header_untrusted,
)
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.errors import ConfigurationError

SEED_PARTITION_BYTES: Final = 4 * MIB
"""As large as the largest block, so that no block of the image has both the seed and another partition."""

SEED_PARTITION_NAME: Final = "diskcast-seed"

_LINUX_TYPE: Final = uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")
"""Linux finds the seed by its label; a type of Windows's own would get a drive letter there."""
_LINUX_MBR_TYPE: Final = 0x83
_ALIGNMENT: Final = MIB
_GPT_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_MBR_ENTRY: Final = struct.Struct("<B3sB3sII")
_MBR_ENTRIES: Final = range(446, 510, 16)
_MBR_SECTORS_MAX: Final = 0xFFFFFFFF
_CHS_UNUSED: Final = b"\xfe\xff\xff"
_PRIMARY_MAX: Final = 4


@dataclasses.dataclass(frozen=True, slots=True)
class SeedPartitionPlan:
    """The place of a seed partition, and the writes that add it.

    Attributes:
        number: the partition's number.
        start_bytes: its start, a multiple of the block size; it has ``SEED_PARTITION_BYTES``.
        disk_bytes: size of the disk, which may have grown.
        writes: pairs of an offset in bytes and data, in order.
    """

    number: int
    start_bytes: int
    disk_bytes: int
    writes: tuple[tuple[int, bytes], ...]


def plan_seed_partition(
    read: Read, size_bytes: int, layout: DiskLayout, block_bytes: int
) -> SeedPartitionPlan:
    """Return the writes that add a seed partition; the same disk always gives the same ones.

    Args:
        read: reads the disk; its errors propagate.
        size_bytes: the disk's size.
        layout: its partitions, as :func:`~protocol.disk.partition_table.parse_layout_untrusted` returns them.
        block_bytes: the image's block size.

    Raises:
        ConfigurationError: the disk has no partition table, or no room for one more partition in it.
    """
    alignment = max(block_bytes, _ALIGNMENT)
    if any(part.name == SEED_PARTITION_NAME for part in layout.partitions):
        raise ConfigurationError("the disk already has a seed partition: use it as it is")
    match layout.table:
        case TableKind.GPT:
            return _plan_gpt(read, size_bytes, layout.sector_bytes, alignment)
        case TableKind.MBR:
            return _plan_mbr(read, size_bytes, layout, alignment)
        case TableKind.NONE:
            raise ConfigurationError(
                "the disk has no partition table, so it can't have a seed partition: partition the golden disk first"
            )


def _find_place(read: Read, used: list[tuple[int, int]], start: int, stop: int, alignment: int) -> int | None:
    """Return the start of the first gap that is large enough and empty, in bytes; None for none.

    Boards keep boot loaders, and RAID controllers their metadata, outside of all partitions.
    """
    for first, end in [*sorted(used), (stop, stop)]:
        place = -(-start // alignment) * alignment
        if place + SEED_PARTITION_BYTES <= min(first, stop) and not any(read(place, SEED_PARTITION_BYTES)):
            return place
        start = max(start, end)
    return None


# -- GPT ------------------------------------------------------------------------------------------------------


def _plan_gpt(read: Read, size_bytes: int, sector_bytes: int, alignment: int) -> SeedPartitionPlan:
    header = read_header_untrusted(read, 1, sector_bytes)
    entries = None if header is None else read_entries_untrusted(read, header, size_bytes, sector_bytes)
    if header is None or entries is None:
        raise ConfigurationError("the disk's primary GPT is damaged: repair it with gdisk first")
    used = _used_sectors(entries, header.entry_bytes)
    entries_sectors = -(-len(entries) // sector_bytes)
    old_last = size_bytes // sector_bytes - 1
    if max((stop for _, stop in used.values()), default=0) > old_last - entries_sectors:
        raise ConfigurationError(
            "a partition reaches beyond the end of the disk: repair the partition table first"
        )
    ranges = [(first * sector_bytes, stop * sector_bytes) for first, stop in used.values()]
    usable_start = max(header.usable_start_sector, header.entries_sector + entries_sectors) * sector_bytes
    usable_stop = min(header.usable_stop_sector, old_last - entries_sectors)
    start_bytes = _find_place(read, ranges, usable_start, usable_stop * sector_bytes, alignment)
    last = old_last
    if start_bytes is None:
        start_bytes = -(-size_bytes // alignment) * alignment
        needed_bytes = start_bytes + SEED_PARTITION_BYTES + (entries_sectors + 1) * sector_bytes
        last = max(size_bytes, -(-needed_bytes // MIB) * MIB) // sector_bytes - 1
        usable_stop = last - entries_sectors
    number = _free_gpt_number(used, header.entry_count)
    changed = bytearray(entries)
    first_sector = start_bytes // sector_bytes
    _GPT_ENTRY.pack_into(
        changed,
        (number - 1) * header.entry_bytes,
        _LINUX_TYPE.bytes_le,
        _partition_guid(header.disk_guid, number),
        first_sector,
        first_sector + SEED_PARTITION_BYTES // sector_bytes - 1,
        0,
        SEED_PARTITION_NAME.encode("utf-16-le"),
    )
    writes = _old_backup_zeros(header, used, last, entries_sectors, sector_bytes)
    writes.append((start_bytes, bytes(SEED_PARTITION_BYTES)))
    record = protective_record(read(0, sector_bytes), last)
    if record:
        writes.append((0, record))
    crc = zlib.crc32(changed)
    place = last - entries_sectors
    primary = header.placed(
        own=1, other=last, usable_stop=usable_stop, entries=header.entries_sector, entries_crc=crc
    )
    backup = header.placed(own=last, other=1, usable_stop=usable_stop, entries=place, entries_crc=crc)
    writes += [
        (sector_bytes, primary),
        (header.entries_sector * sector_bytes, bytes(changed)),
        (place * sector_bytes, bytes(changed)),
        (last * sector_bytes, backup),
    ]
    disk_bytes = size_bytes if last == old_last else (last + 1) * sector_bytes
    return SeedPartitionPlan(number, start_bytes, disk_bytes, tuple(writes))


def _used_sectors(entries: bytes, entry_bytes: int) -> dict[int, tuple[int, int]]:
    """Return first and end sector of each partition, by its number."""
    used = {}
    for index, start in enumerate(range(0, len(entries), entry_bytes)):
        kind, _, first, final, _, _ = _GPT_ENTRY.unpack_from(entries, start)
        if any(kind):
            used[index + 1] = first, final + 1
    return used


def _free_gpt_number(used: dict[int, tuple[int, int]], entry_count: int) -> int:
    """Return the number behind the highest one, or the lowest free one."""
    behind = max(used, default=0) + 1
    if behind <= entry_count:
        return behind
    free = next((number for number in range(1, entry_count + 1) if number not in used), None)
    if free is None:
        raise ConfigurationError(
            f"the GPT already has {entry_count} partitions, as many as it can have: delete one that isn't needed"
        )
    return free


def _partition_guid(disk_guid: bytes, number: int) -> bytes:
    """Return a GUID that depends on the disk alone, so that the same disk gives the same image."""
    digest = blake3(f"diskcast seed partition {number}".encode() + disk_guid).digest()
    return uuid.UUID(bytes=digest[:16], version=4).bytes_le


def _old_backup_zeros(
    header: GptHeader, used: dict[int, tuple[int, int]], last: int, entries_sectors: int, sector_bytes: int
) -> list[tuple[int, bytes]]:
    """Return zeros for a backup that is no longer at the disk's end: tools would find two."""
    first, stop = header.other_sector - entries_sectors, header.other_sector + 1
    if header.other_sector >= last or first <= header.entries_sector + entries_sectors:
        return []
    if any(first < used_stop and used_first < stop for used_first, used_stop in used.values()):
        return []
    return [(first * sector_bytes, bytes((stop - first) * sector_bytes))]


# -- MBR ------------------------------------------------------------------------------------------------------


def _plan_mbr(read: Read, size_bytes: int, layout: DiskLayout, alignment: int) -> SeedPartitionPlan:
    record = bytearray(read(0, layout.sector_bytes))
    free = [place for place in _MBR_ENTRIES if not record[place + 4]]
    if not free:
        raise ConfigurationError(
            f"the MBR already has {_PRIMARY_MAX} primary partitions, as many as it can have: delete one that isn't "
            "needed, or convert the golden disk to GPT"
        )
    ranges = [_bytes_of(part) for part in layout.partitions]
    start_bytes = _find_place(read, ranges, _ALIGNMENT, size_bytes, alignment)
    if start_bytes is None:
        start_bytes = -(-size_bytes // alignment) * alignment
    disk_bytes = max(size_bytes, start_bytes + SEED_PARTITION_BYTES)
    first, count = (one // layout.sector_bytes for one in (start_bytes, SEED_PARTITION_BYTES))
    if first + count > _MBR_SECTORS_MAX:
        raise ConfigurationError(
            "the seed partition would be beyond the reach of an MBR: leave 5 MiB free before the last partition, or "
            "convert the golden disk to GPT"
        )
    _MBR_ENTRY.pack_into(record, free[0], 0, _CHS_UNUSED, _LINUX_MBR_TYPE, _CHS_UNUSED, first, count)
    writes = ((start_bytes, bytes(SEED_PARTITION_BYTES)), (0, bytes(record)))
    return SeedPartitionPlan(_MBR_ENTRIES.index(free[0]) + 1, start_bytes, disk_bytes, writes)


def _bytes_of(part: Partition) -> tuple[int, int]:
    return part.start_bytes, part.stop_bytes
