"""Partition tables and filesystem signatures built byte by byte, for tests without tools."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable, Sequence

LINUX_GUID = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
EFI_GUID = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"


def reader(disk: bytes | bytearray) -> Callable[[int, int], bytes]:
    """Return a ``read(offset, length)`` function for a disk in memory."""
    return lambda offset, length: bytes(disk[offset : offset + length])


def mbr_entry(kind: int, start: int, count: int, flag: int = 0) -> bytes:
    """Return one entry of a boot record, in sectors."""
    return struct.pack("<B3xB3xII", flag, kind, start, count)


def put_boot_record(disk: bytearray, offset: int, *entries: bytes) -> None:
    """Return a master or extended boot record."""
    disk[offset + 446 : offset + 510] = b"".join(entries).ljust(64, b"\0")
    disk[offset + 510 : offset + 512] = b"\x55\xaa"


def gpt_entry(first: int, last: int, name: str = "", guid: str = LINUX_GUID) -> bytes:
    """Return one entry of a GPT, in sectors, including the last one."""
    return struct.pack(
        "<16s16sQQQ72s",
        uuid.UUID(guid).bytes_le,
        bytes(range(16)),
        first,
        last,
        0,
        name.encode("utf-16-le"),
    )


def put_gpt(
    disk: bytearray,
    entries: Sequence[bytes],
    *,
    sector_bytes: int = 512,
    entry_count: int = 128,
    hybrid: bytes = b"",
    last_usable_sector: int = 1000,
) -> None:
    """Return a disk with a protective MBR and both copies of a GPT."""
    sectors = len(disk) // sector_bytes
    put_boot_record(disk, 0, mbr_entry(0xEE, 1, min(sectors - 1, 0xFFFFFFFF)), hybrid)
    array = b"".join(entries).ljust(entry_count * 128, b"\0")
    array_sectors = -(-len(array) // sector_bytes)
    for own, other, array_sector in ((1, sectors - 1, 2), (sectors - 1, 1, sectors - 1 - array_sectors)):
        put_gpt_header(
            disk, sector_bytes, own, other, array_sector, entry_count, zlib.crc32(array), last_usable_sector
        )
        disk[array_sector * sector_bytes : array_sector * sector_bytes + len(array)] = array


def put_gpt_header(
    disk: bytearray,
    sector_bytes: int,
    own: int,
    other: int,
    array_sector: int,
    entry_count: int,
    array_crc: int,
    last_usable_sector: int = 1000,
) -> None:
    """Return the header of one copy with its checksum."""

    def packed(crc: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, crc, 0, own, other, 34, last_usable_sector),
            *(bytes(range(16)), array_sector, entry_count, 128, array_crc),
        )

    disk[own * sector_bytes : own * sector_bytes + 92] = packed(zlib.crc32(packed(0)))


def put_filesystem(disk: bytearray, offset: int, filesystem: str) -> None:
    """Write just enough of a filesystem to be detected as one."""
    if filesystem == "ext4":
        disk[offset + 1080 : offset + 1082] = b"\x53\xef"
    elif filesystem == "xfs":
        disk[offset : offset + 4] = b"XFSB"
    elif filesystem == "btrfs":
        disk[offset + 0x10040 : offset + 0x10048] = b"_BHRfS_M"
    elif filesystem == "swap":
        disk[offset + 4086 : offset + 4096] = b"SWAPSPACE2"
    else:
        disk[offset : offset + 3] = b"\xeb\x58\x90"
        disk[offset + 510 : offset + 512] = b"\x55\xaa"
        if filesystem == "vfat":
            disk[offset + 3 : offset + 36] = struct.pack(
                "<8sHBHBHHBHHHII", b"mkfs.fat", 512, 8, 32, 2, 0, 0, 0xF8, 0, 32, 2, 0, 100_000
            )[:33]
            disk[offset + 36 : offset + 40] = (100).to_bytes(4, "little")
        else:
            disk[offset + 3 : offset + 11] = filesystem.upper().encode().ljust(8)
