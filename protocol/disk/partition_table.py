"""Partition tables as untrusted bytes: GPT with its backup, MBR with its chain of extended boot records.

The rules are the Linux kernel's (block/partitions/efi.c and msdos.c): entries that it ignores are ignored here. The
structures are those of the UEFI specification 2.10, section 5.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from typing import Final

from protocol.disk.disk_reads import Read, reader_from
from protocol.disk.filesystem_magic import detect_filesystem
from protocol.disk.gpt import read_entries_untrusted, read_header_untrusted

PARTITIONS_MAX: Final = 128
"""Entries of a GPT of the usual size, and as many as surely fit in metadata of ``METADATA_BYTES_MAX``; further
partitions are ignored."""

BOOT_RECORDS_MAX: Final = 128
"""A chain of extended boot records may be a loop or as long as the disk; one record per partition is enough."""

SECTOR_BYTES_CHOICES: Final = (512, 4096)
"""Logical sector sizes of disks; an image file doesn't record the one that it was made for."""

_MBR_BYTES: Final = 512
_MBR_ENTRY: Final = struct.Struct("<B3xB3xII")
_PROTECTIVE: Final = 0xEE
EXTENDED_TYPES: Final = frozenset({"0x05", "0x0F", "0x85"})
"""MBR types of a partition that only contains others."""

EFI_SYSTEM_TYPES: Final = ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "0xEF")
"""Types of a partition with boot loaders for UEFI (UEFI specification 2.10, 5.3.3 and 5.2.2)."""

_GPT_ENTRY: Final = struct.Struct("<16s16sQQQ72s")


class TableKind(enum.StrEnum):
    """Format of a disk's partition table."""

    NONE = "none"
    MBR = "mbr"
    GPT = "gpt"


@dataclasses.dataclass(frozen=True, slots=True)
class Partition:
    """One partition, cut to the disk's end as the kernel does."""

    number: int
    """Number as the kernel counts: the 1-based entry, logical partitions from 5."""
    start_bytes: int
    size_bytes: int
    type: str
    """GPT: the type's GUID in upper case; MBR: the type as in ``0x83``."""
    name: str = ""
    """GPT only; made printable."""
    filesystem: str = ""
    """Result of :func:`~protocol.disk.filesystem_magic.detect_filesystem`."""

    @property
    def stop_bytes(self) -> int:
        """Return the end of the partition."""
        return self.start_bytes + self.size_bytes

    @property
    def is_extended(self) -> bool:
        """Return whether it only contains other partitions."""
        return self.type in EXTENDED_TYPES


@dataclasses.dataclass(frozen=True, slots=True)
class DiskLayout:
    """Partition table of a disk, or the filesystem that it has instead."""

    table: TableKind
    sector_bytes: int
    """Unit of the table's numbers; 512 without a table."""
    partitions: tuple[Partition, ...]
    """Partitions by number; extended partitions and the logical ones within them are both included."""
    boot_record_offsets: tuple[int, ...] = ()
    """Offsets of the extended boot records; MBR only."""
    filesystem: str = ""
    """Filesystem on the disk itself when it has no table, a result of
    :func:`~protocol.disk.filesystem_magic.detect_filesystem`."""


def parse_layout_untrusted(read: Read, size_bytes: int, *, sector_bytes: int = 512) -> DiskLayout:
    """Parse a disk's partition table; anything but a complete, valid table is :attr:`TableKind.NONE`.

    A protective or hybrid MBR announces a GPT; its backup is used when the first copy is damaged. A GPT without such an
    MBR is a leftover. A boot sector of FAT, exFAT or NTFS that looks like an MBR isn't one.

    Args:
        read: reads the disk; its errors propagate.
        size_bytes: the disk's size.
        sector_bytes: its logical sector size: the unit of an MBR, and the first place to look for a GPT.
    """
    filesystem = detect_filesystem(read)
    none = DiskLayout(TableKind.NONE, 512, (), filesystem=filesystem)
    record = read(0, _MBR_BYTES)
    entries = _boot_record_entries(record)
    if entries is None or filesystem in ("vfat", "exfat", "ntfs"):
        return none
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        for unit_bytes in dict.fromkeys((sector_bytes, *SECTOR_BYTES_CHOICES)):
            partitions = _gpt_partitions(read, size_bytes, unit_bytes)
            if partitions is not None:
                return DiskLayout(TableKind.GPT, unit_bytes, _with_filesystems(read, partitions))
        return none
    partitions, boot_record_offsets = _mbr_partitions(read, size_bytes, sector_bytes, entries)
    if not partitions:
        return none
    return DiskLayout(
        TableKind.MBR, sector_bytes, _with_filesystems(read, partitions), tuple(boot_record_offsets)
    )


def _with_filesystems(read: Read, partitions: list[Partition]) -> tuple[Partition, ...]:
    return tuple(
        part
        if part.is_extended
        else dataclasses.replace(
            part, filesystem=detect_filesystem(reader_from(read, part.start_bytes, part.size_bytes))
        )
        for part in partitions
    )


# -- MBR ------------------------------------------------------------------------------------------------------


def _boot_record_entries(record: bytes) -> list[tuple[int, int, int, int]] | None:
    """Return the four entries of a boot record, (boot flag, type, start, size); None if it isn't one."""
    if len(record) != _MBR_BYTES or record[510:] != b"\x55\xaa":
        return None
    entries = list(_MBR_ENTRY.iter_unpack(record[446:510]))
    if any(flag not in (0, 0x80) for flag, _, _, _ in entries):  # boot code of a filesystem's boot sector
        return None
    return entries


def _mbr_partition(number: int, kind: int, start_bytes: int, stop_bytes: int) -> Partition:
    return Partition(number, start_bytes, stop_bytes - start_bytes, f"0x{kind:02X}")


def _mbr_partitions(
    read: Read, size_bytes: int, sector_bytes: int, entries: list[tuple[int, int, int, int]]
) -> tuple[list[Partition], list[int]]:
    """Return the primary and logical partitions, and the offsets of the extended boot records."""
    partitions = []
    for number, (_, kind, start, count) in enumerate(entries, start=1):
        start_bytes, stop_bytes = start * sector_bytes, min(size_bytes, (start + count) * sector_bytes)
        if kind and 0 < start_bytes < stop_bytes:
            partitions.append(_mbr_partition(number, kind, start_bytes, stop_bytes))
    boot_record_offsets: list[int] = []
    for extended in [part for part in partitions if part.is_extended]:
        _follow_boot_records(read, sector_bytes, extended, partitions, boot_record_offsets)
    return partitions, boot_record_offsets


def _follow_boot_records(
    read: Read, sector_bytes: int, extended: Partition, partitions: list[Partition], offsets: list[int]
) -> None:
    """Add the logical partitions within ``extended`` and the offsets of their extended boot records."""
    number = max(4, *(part.number for part in partitions)) + 1
    offset = extended.start_bytes
    while offset not in offsets and len(offsets) < BOOT_RECORDS_MAX and len(partitions) < PARTITIONS_MAX:
        entries = _boot_record_entries(read(offset, _MBR_BYTES))
        if entries is None:
            return
        offsets.append(offset)
        next_offset = None
        for _, kind, start, count in entries:
            if f"0x{kind:02X}" in EXTENDED_TYPES:
                if next_offset is None and count:
                    next_offset = extended.start_bytes + start * sector_bytes
            elif kind and count and len(partitions) < PARTITIONS_MAX:
                start_bytes = offset + start * sector_bytes
                stop_bytes = min(extended.stop_bytes, start_bytes + count * sector_bytes)
                if offset < start_bytes < stop_bytes:
                    partitions.append(_mbr_partition(number, kind, start_bytes, stop_bytes))
                    number += 1
        if next_offset is None or not extended.start_bytes < next_offset < extended.stop_bytes:
            return
        offset = next_offset


# -- GPT ------------------------------------------------------------------------------------------------------


def _gpt_partitions(read: Read, size_bytes: int, sector_bytes: int) -> list[Partition] | None:
    """Return the partitions of the first valid copy of a GPT; None if there is none."""
    for header_sector in (1, size_bytes // sector_bytes - 1):
        partitions = _gpt_copy(read, size_bytes, sector_bytes, header_sector)
        if partitions is not None:
            return partitions
    return None


def _gpt_copy(read: Read, size_bytes: int, sector_bytes: int, header_sector: int) -> list[Partition] | None:
    header = read_header_untrusted(read, header_sector, sector_bytes)
    if header is None:
        return None
    array = read_entries_untrusted(read, header, size_bytes, sector_bytes)
    if array is None:
        return None
    partitions: list[Partition] = []
    for index in range(header.entry_count):
        type_guid, _, first, last, _, name = _GPT_ENTRY.unpack_from(array, index * header.entry_bytes)
        start_bytes, stop_bytes = first * sector_bytes, min(size_bytes, (last + 1) * sector_bytes)
        if any(type_guid) and 0 < start_bytes < stop_bytes and len(partitions) < PARTITIONS_MAX:
            partitions.append(
                Partition(
                    index + 1, start_bytes, stop_bytes - start_bytes, _guid_text(type_guid), _printable(name)
                )
            )
    return partitions


def _guid_text(guid: bytes) -> str:
    """Format a GUID in the usual way: its first three groups are little-endian."""
    first, second, third = struct.unpack_from("<IHH", guid)
    return f"{first:08X}-{second:04X}-{third:04X}-{guid[8:10].hex()}-{guid[10:].hex()}".upper()


def _printable(name: bytes) -> str:
    text = name.decode("utf-16-le", errors="replace").split("\0", 1)[0]
    return "".join(letter if letter.isprintable() else "_" for letter in text)
