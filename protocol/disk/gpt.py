"""Headers of a GPT as untrusted bytes, and its backup on a disk that is larger than its image.

The structures are those of the UEFI specification 2.10, section 5.3: a header and an array of entries at the start of
the disk, and a copy of both at its end, each header with the other's place.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from typing import Final

from protocol.constants import MIB
from protocol.disk.disk_reads import Read

ENTRIES_BYTES_MAX: Final = MIB
"""64 times the usual size; the entries are read as a whole for their checksum."""
ENTRY_BYTES_MIN: Final = 128
ENTRY_BYTES_MAX: Final = 4096

_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_SIGNATURE: Final = b"EFI PART"
_HEADER_BYTES_MIN: Final = 92
_PRIMARY_SECTOR: Final = 1

_BOOT_RECORD_BYTES: Final = 512
_BOOT_SIGNATURE: Final = b"\x55\xaa"
_BOOT_ENTRIES: Final = range(446, 510, 16)
_PROTECTIVE: Final = 0xEE
_SECTORS_MAX: Final = 0xFFFFFFFF
"""Size in a protective boot record of a disk with more sectors (UEFI specification 2.10, table 5.4)."""


@dataclasses.dataclass(frozen=True, slots=True)
class GptHeader:
    """A header with a correct checksum, at the place that it names.

    Attributes:
        header_bytes: length that its checksum covers.
        other_sector: place of the other header.
        usable_start_sector: start of the sectors for partitions.
        usable_stop_sector: end of the sectors for partitions.
        disk_guid: the disk's GUID.
        entries_sector: place of its entries.
        entry_count: number of entries, used or not.
        entry_bytes: size of an entry.
        entries_crc: CRC-32 of the entries.
        sector: bytes of the whole sector.
    """

    header_bytes: int
    other_sector: int
    usable_start_sector: int
    usable_stop_sector: int
    disk_guid: bytes
    entries_sector: int
    entry_count: int
    entry_bytes: int
    entries_crc: int
    sector: bytes

    def placed(
        self, *, own: int, other: int, usable_stop: int, entries: int, entries_crc: int | None = None
    ) -> bytes:
        """Return the sector of this header for other places, which are numbers of sectors, or other entries."""
        head = bytearray(self.sector)
        if entries_crc is not None:
            struct.pack_into("<I", head, 88, entries_crc)
        for place, value in ((24, own), (32, other), (48, usable_stop - 1), (72, entries)):
            struct.pack_into("<Q", head, place, value)
        struct.pack_into("<I", head, 16, 0)
        struct.pack_into("<I", head, 16, zlib.crc32(head[: self.header_bytes]))
        return bytes(head)


@dataclasses.dataclass(frozen=True, slots=True)
class MovedBackup:
    """Writes that move a GPT's backup: pairs of an offset in bytes and data.

    Attributes:
        backup: entries and header at the disk's end; to be on the disk before anything else is written.
        primary: header at the disk's start, and the protective boot record.
    """

    backup: tuple[tuple[int, bytes], ...]
    primary: tuple[tuple[int, bytes], ...]


def read_header_untrusted(read: Read, sector: int, sector_bytes: int) -> GptHeader | None:
    """Read a header; None if there is no valid one at this sector."""
    head = read(sector * sector_bytes, sector_bytes)
    if sector < _PRIMARY_SECTOR or len(head) != sector_bytes:
        return None
    (
        signature, _, length, crc, _, own, other, first_usable, last_usable, disk_guid, entries, count, size,
        entries_crc,
    ) = _HEADER.unpack_from(head)  # fmt: skip
    if (
        signature != _SIGNATURE
        or not _HEADER_BYTES_MIN <= length <= sector_bytes
        or own != sector
        or zlib.crc32(head[:16] + bytes(4) + head[20:length]) != crc
    ):
        return None
    return GptHeader(
        length, other, first_usable, last_usable + 1, disk_guid, entries, count, size, entries_crc, head
    )


def read_entries_untrusted(read: Read, header: GptHeader, size_bytes: int, sector_bytes: int) -> bytes | None:
    """Read a header's entries; None if they are beyond the disk, too long, or don't match their checksum."""
    length = header.entry_count * header.entry_bytes
    start_bytes = header.entries_sector * sector_bytes
    if (
        not ENTRY_BYTES_MIN <= header.entry_bytes <= ENTRY_BYTES_MAX
        or length > ENTRIES_BYTES_MAX
        or start_bytes >= size_bytes
    ):
        return None
    entries = read(start_bytes, length)
    return entries if len(entries) == length and zlib.crc32(entries) == header.entries_crc else None


def has_backup_at_end_untrusted(read: Read, size_bytes: int, sector_bytes: int) -> bool:
    """Return whether both copies of a GPT are valid and equal, and the backup is in the last sector."""
    last_sector = size_bytes // sector_bytes - 1
    first = read_header_untrusted(read, _PRIMARY_SECTOR, sector_bytes)
    copy = read_header_untrusted(read, last_sector, sector_bytes)
    if first is None or copy is None or first.other_sector != last_sector:
        return False
    entries = read_entries_untrusted(read, first, size_bytes, sector_bytes)
    return entries is not None and entries == read_entries_untrusted(read, copy, size_bytes, sector_bytes)


def usable_stop_bytes_untrusted(read: Read, sector_bytes: int) -> int | None:
    """Return the end of the sectors that a GPT allows for partitions; None if its primary header is invalid."""
    header = read_header_untrusted(read, _PRIMARY_SECTOR, sector_bytes)
    return header.usable_stop_sector * sector_bytes if header else None


def move_backup_untrusted(read: Read, size_bytes: int, sector_bytes: int) -> MovedBackup | None:
    """Compute the writes that move a GPT's backup to the end of a disk of ``size_bytes``.

    The partitions stay as they are, and the sectors that the disk has gained become usable.

    Returns:
        The writes; None if the primary GPT is invalid, or a partition reaches into the place of the backup.
    """
    header = read_header_untrusted(read, _PRIMARY_SECTOR, sector_bytes)
    if header is None:
        return None
    entries = read_entries_untrusted(read, header, size_bytes, sector_bytes)
    if entries is None:
        return None
    last_sector = size_bytes // sector_bytes - 1
    entries_sector = last_sector - -(-len(entries) // sector_bytes)
    if (
        _partitions_stop_sector(entries, header.entry_bytes) > entries_sector
        or entries_sector <= header.entries_sector
    ):
        return None
    padded = entries.ljust((last_sector - entries_sector) * sector_bytes, b"\0")
    backup = header.placed(
        own=last_sector, other=_PRIMARY_SECTOR, usable_stop=entries_sector, entries=entries_sector
    )
    primary = header.placed(
        own=_PRIMARY_SECTOR, other=last_sector, usable_stop=entries_sector, entries=header.entries_sector
    )
    record = protective_record(read(0, sector_bytes), last_sector)
    return MovedBackup(
        backup=((entries_sector * sector_bytes, padded), (last_sector * sector_bytes, backup)),
        primary=((sector_bytes, primary), *(((0, record),) if record else ())),
    )


def _partitions_stop_sector(entries: bytes, entry_bytes: int) -> int:
    """Return the end of the last partition; 0 without one."""
    stop_sector = 0
    for start in range(0, len(entries), entry_bytes):
        if any(entries[start : start + 16]):
            stop_sector = max(stop_sector, struct.unpack_from("<Q", entries, start + 40)[0] + 1)
    return stop_sector


def protective_record(sector: bytes, last_sector: int) -> bytes:
    """Return the boot record whose protective entry covers the disk; empty if it needs no change.

    A hybrid record stays as it is: its protective entry ends before the partitions that it names.
    """
    if len(sector) < _BOOT_RECORD_BYTES or sector[510:512] != _BOOT_SIGNATURE:
        return b""
    used = [place for place in _BOOT_ENTRIES if sector[place + 4]]
    if len(used) != 1 or sector[used[0] + 4] != _PROTECTIVE:
        return b""
    record = bytearray(sector)
    struct.pack_into("<I", record, used[0] + 12, min(last_sector, _SECTORS_MAX))
    return b"" if bytes(record) == sector else bytes(record)
