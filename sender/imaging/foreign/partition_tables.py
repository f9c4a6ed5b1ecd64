"""Bytes of partition tables that an image directory describes: exact copies where it has them, otherwise from its text.

Places that a text doesn't tell, those of extended boot records, are where fdisk and parted put them.
"""

from __future__ import annotations

import dataclasses
import struct
import uuid
import zlib
from typing import Final

from protocol.constants import MIB
from protocol.disk.gpt import read_entries_untrusted, read_header_untrusted
from protocol.disk.partition_table import TableKind
from protocol.errors import ForeignImageError
from sender.imaging.foreign.partition_dump import DumpedPartition, PartitionDump

_RECORD_BYTES: Final = 512
_BOOT_CODE_BYTES: Final = 440
_SIGNATURE: Final = b"\x55\xaa"
_MBR_ENTRY: Final = struct.Struct("<B3sB3sII")
_HEADS: Final = 255
_TRACK_SECTORS: Final = 63
_CYLINDERS: Final = 1024
_EXTENDED_TYPE: Final = 0x05
_PROTECTIVE_TYPE: Final = 0xEE
_RECORD_GAPS: Final = (2048, 63, 1)
"""Sectors from an extended boot record to its logical partition, as programs choose them."""
_GPT_HEADER: Final = struct.Struct("<8s4sIIIQQQQ16sQIII")
_GPT_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_SECTORS_32: Final = (1 << 32) - 1

Write = tuple[int, bytes]
"""An offset in bytes, and data."""


@dataclasses.dataclass(frozen=True, slots=True)
class TableFiles:
    """Copies of raw sectors that a directory may have; empty for none."""

    boot_sectors: bytes = b""
    """From the first sector on: boot record, and for GPT its header and entries."""
    hidden_sectors: bytes = b""
    """From the second sector on, before the first partition."""
    disk_bytes: int | None = None
    """Size of the disk."""


@dataclasses.dataclass(frozen=True, slots=True)
class DiskTable:
    """A disk's size, and everything outside its partitions."""

    disk_bytes: int
    writes: tuple[Write, ...]


def build_table(dump: PartitionDump, files: TableFiles, name: str) -> DiskTable:
    """Return the writes that restore the partition table, boot code and hidden sectors.

    Args:
        dump: the table as text.
        files: raw copies.
        name: the directory's name for messages.

    Raises:
        ForeignImageError: the table doesn't fit the disk.
    """
    table = _gpt(dump, files, name) if dump.table is TableKind.GPT else _mbr(dump, files, name)
    if max(part.stop_sector for part in dump.partitions) * dump.sector_bytes > table.disk_bytes:
        raise ForeignImageError(f"{name}: partitions reach beyond the disk's end, {table.disk_bytes} bytes")
    return table


# -- MBR ------------------------------------------------------------------------------------------------------


def _mbr(dump: PartitionDump, files: TableFiles, name: str) -> DiskTable:
    first_bytes = min(part.start_sector for part in dump.partitions) * dump.sector_bytes
    stop_bytes = max(part.stop_sector for part in dump.partitions) * dump.sector_bytes
    disk_bytes = files.disk_bytes or -(-stop_bytes // MIB) * MIB
    extended = dump.extended
    entries = [
        (part.number, _mbr_entry(part, part.start_sector))
        for part in dump.partitions
        if part not in dump.logical
    ]
    writes = [(0, _boot_record(files.boot_sectors[:_RECORD_BYTES], entries, dump.disk_id))]
    behind = files.hidden_sectors or files.boot_sectors[_RECORD_BYTES:]
    writes.append((_RECORD_BYTES, behind[: max(0, first_bytes - _RECORD_BYTES)]))
    if extended is not None:
        writes += _extended_records(dump, extended, name)
    return DiskTable(disk_bytes, tuple(write for write in writes if write[1]))


def _mbr_entry(part: DumpedPartition, start: int) -> bytes:
    places = _geometry(part.start_sector), _geometry(part.stop_sector - 1)
    flag, kind = 0x80 * part.is_bootable, int(part.type, 16)
    return _MBR_ENTRY.pack(flag, places[0], kind, places[1], start, part.sector_count)


def _geometry(sector: int) -> bytes:
    """Return head, sector and cylinder of a sector; the last ones for sectors beyond."""
    cylinder, rest = divmod(sector, _HEADS * _TRACK_SECTORS)
    head, place = divmod(rest, _TRACK_SECTORS)
    if cylinder >= _CYLINDERS:
        cylinder, head, place = _CYLINDERS - 1, _HEADS - 1, _TRACK_SECTORS - 1
    return bytes((head, place + 1 | cylinder >> 2 & 0xC0, cylinder & 0xFF))


def _boot_record(raw: bytes, entries: list[tuple[int, bytes]], disk_id: str) -> bytes:
    """Return the raw boot record if it has the same partitions, otherwise one with its boot code."""
    record = bytearray(raw.ljust(_RECORD_BYTES, b"\0"))
    fields = [bytes(16)] * 4
    for number, entry in entries:
        if number > len(fields):
            raise ForeignImageError(f"partition {number} of an MBR is neither primary nor logical")
        fields[number - 1] = entry
    if record[510:] == _SIGNATURE and _places(bytes(record[446:510])) == _places(b"".join(fields)):
        return bytes(record)
    if disk_id:
        record[_BOOT_CODE_BYTES : _BOOT_CODE_BYTES + 4] = int(disk_id, 16).to_bytes(4, "little")
    record[446:] = b"".join(fields) + _SIGNATURE
    return bytes(record)


def _places(entries: bytes) -> list[tuple[int, int, int]]:
    """Return type, start and size of each entry."""
    return [
        (kind, start, size) if size else (0, 0, 0)
        for _, _, kind, _, start, size in _MBR_ENTRY.iter_unpack(entries)
    ]


def _extended_records(dump: PartitionDump, extended: DumpedPartition, name: str) -> list[Write]:
    """Return the chain of extended boot records, one for each logical partition."""
    parts = dump.logical
    if not parts:
        return [(extended.start_sector * dump.sector_bytes, bytes(446 + 64) + _SIGNATURE)]
    places = [extended.start_sector]
    gaps = (parts[0].start_sector - extended.start_sector, *_RECORD_GAPS)
    for part in parts[1:]:
        candidates = (part.start_sector - gap for gap in gaps)
        place = next((sector for sector in candidates if _is_free(sector, parts, places, extended)), None)
        if place is None:
            raise ForeignImageError(
                f"{name}: no space for the boot record of logical partition {part.number}"
            )
        places.append(place)
    writes = []
    for index, (part, place) in enumerate(zip(parts, places, strict=True)):
        entries = _mbr_entry(part, part.start_sector - place)
        if index + 1 < len(parts):
            following, next_place = parts[index + 1], places[index + 1]
            places_shown = _geometry(next_place), _geometry(following.stop_sector - 1)
            start, count = next_place - extended.start_sector, following.stop_sector - next_place
            entries += _MBR_ENTRY.pack(0, places_shown[0], _EXTENDED_TYPE, places_shown[1], start, count)
        writes.append((place * dump.sector_bytes, bytes(446) + entries.ljust(64, b"\0") + _SIGNATURE))
    return writes


def _is_free(
    sector: int, parts: tuple[DumpedPartition, ...], places: list[int], extended: DumpedPartition
) -> bool:
    return (
        extended.start_sector < sector < extended.stop_sector
        and sector not in places
        and not any(part.start_sector <= sector < part.stop_sector for part in parts)
    )


# -- GPT ------------------------------------------------------------------------------------------------------


def _gpt(dump: PartitionDump, files: TableFiles, name: str) -> DiskTable:
    unit = dump.sector_bytes
    raw = files.boot_sectors

    def read(offset: int, length: int) -> bytes:
        return raw[offset : offset + length]

    header = read_header_untrusted(read, 1, unit)
    entries = None if header is None else read_entries_untrusted(read, header, len(raw), unit)
    sector_count = _sector_count(dump, files, None if header is None else header.other_sector)
    record = _protective_record(raw[:_RECORD_BYTES], sector_count)
    entries_sectors = -(-dump.entry_count * _GPT_ENTRY.size // unit)
    if (
        header is not None
        and entries is not None
        and _gpt_places(entries, header.entry_bytes) == _dump_places(dump)
    ):
        entries_sectors = -(-len(entries) // unit)
        place = sector_count - 1 - entries_sectors
        backup = header.placed(
            own=sector_count - 1, other=1, usable_stop=header.usable_stop_sector, entries=place
        )
        primary = header.sector
        entries_place = header.entries_sector
    else:
        entries = _entries(dump)
        place = sector_count - 1 - entries_sectors
        entries_place = 2
        primary = _header(dump, entries, own=1, other=sector_count - 1, entries_place=2, usable_stop=place)
        backup = _header(dump, entries, own=sector_count - 1, other=1, entries_place=place, usable_stop=place)
    first_sector = min(part.start_sector for part in dump.partitions)
    if (
        place < max(part.stop_sector for part in dump.partitions)
        or first_sector < entries_place + entries_sectors
    ):
        raise ForeignImageError(f"{name}: partitions overlap the GPT on a disk of {sector_count} sectors")
    writes = (
        (0, record),
        (unit, primary),
        (entries_place * unit, entries),
        (place * unit, entries),
        ((sector_count - 1) * unit, backup),
    )
    return DiskTable(sector_count * unit, writes)


def _sector_count(dump: PartitionDump, files: TableFiles, backup_sector: int | None) -> int:
    entries_sectors = -(-dump.entry_count * _GPT_ENTRY.size // dump.sector_bytes)
    if files.disk_bytes:
        return files.disk_bytes // dump.sector_bytes
    if backup_sector is not None:
        return backup_sector + 1
    if dump.last_sector is not None:
        return dump.last_sector + entries_sectors + 2
    stop = max(part.stop_sector for part in dump.partitions) * dump.sector_bytes
    return (-(-stop // MIB) + 1) * MIB // dump.sector_bytes


def _protective_record(raw: bytes, sector_count: int) -> bytes:
    """Return the raw boot record if it is protective or hybrid, otherwise a protective one with its boot code."""
    kinds = [kind for kind, _, _ in _places(raw[446:510])] if len(raw) == _RECORD_BYTES else []
    if _PROTECTIVE_TYPE in kinds and raw[510:] == _SIGNATURE:
        return raw
    entry = _MBR_ENTRY.pack(
        0, b"\0\x02\0", _PROTECTIVE_TYPE, b"\xff\xff\xff", 1, min(sector_count - 1, _SECTORS_32)
    )
    return raw[:_BOOT_CODE_BYTES].ljust(446, b"\0") + entry.ljust(64, b"\0") + _SIGNATURE


def _gpt_places(entries: bytes, entry_bytes: int) -> list[tuple[int, int, int]]:
    places = []
    for index, start in enumerate(range(0, len(entries), entry_bytes)):
        if any(entries[start : start + 16]):
            first, last = struct.unpack_from("<QQ", entries, start + 32)
            places.append((index + 1, first, last + 1))
    return places


def _dump_places(dump: PartitionDump) -> list[tuple[int, int, int]]:
    return [(part.number, part.start_sector, part.stop_sector) for part in dump.partitions]


def _entries(dump: PartitionDump) -> bytes:
    data = bytearray(dump.entry_count * _GPT_ENTRY.size)
    for part in dump.partitions:
        name = part.name.encode("utf-16-le", "replace")[:72]
        kind, own = uuid.UUID(part.type).bytes_le, uuid.UUID(part.uuid).bytes_le if part.uuid else bytes(16)
        _GPT_ENTRY.pack_into(
            data, (part.number - 1) * _GPT_ENTRY.size, kind, own, part.start_sector, part.stop_sector - 1,
            part.attributes, name,
        )  # fmt: skip
    return bytes(data)


def _header(
    dump: PartitionDump, entries: bytes, *, own: int, other: int, entries_place: int, usable_stop: int
) -> bytes:
    disk_id = uuid.UUID(dump.disk_id).bytes_le if dump.disk_id else bytes(16)
    first = dump.first_sector or 2 + -(-len(entries) // dump.sector_bytes)
    last = usable_stop - 1 if dump.last_sector is None else min(dump.last_sector, usable_stop - 1)
    fields = [
        b"EFI PART", b"\0\0\1\0", _GPT_HEADER.size, 0, 0, own, other, first, last, disk_id, entries_place,
        dump.entry_count, _GPT_ENTRY.size, zlib.crc32(entries),
    ]  # fmt: skip
    fields[3] = zlib.crc32(_GPT_HEADER.pack(*fields))
    return _GPT_HEADER.pack(*fields).ljust(dump.sector_bytes, b"\0")
