"""FAT filesystems with a boot loader, built byte by byte, for tests without tools."""

from __future__ import annotations

import struct

_SECTOR_BYTES = 512
_RESERVED_SECTORS = 4
_DIRECTORY, _LONG_NAME = 0x10, 0x0F


def fat_filesystem(entry_bits: int, *, directory: str = "EFI", loader: str = "BOOTX64.EFI") -> bytearray:
    r"""Return a FAT12, FAT16 or FAT32 with a file at ``\EFI\BOOT\`` and one cluster for everything in it."""
    cluster_count = {12: 64, 16: 4100, 32: 64}[entry_bits]
    fat_sectors = -(-(cluster_count + 2) * entry_bits // 8 // _SECTOR_BYTES) + 1
    root_entries = 0 if entry_bits == 32 else 16
    root_sector = _RESERVED_SECTORS + fat_sectors
    data_sector = root_sector + root_entries * 32 // _SECTOR_BYTES
    sectors = data_sector + cluster_count
    data = bytearray(sectors * _SECTOR_BYTES)
    data[0:3] = b"\xeb\x58\x90"
    struct.pack_into(
        "<HBHBHHB", data, 11, _SECTOR_BYTES, 1, _RESERVED_SECTORS, 1, root_entries, sectors, 0xF8
    )
    if entry_bits == 32:
        struct.pack_into("<IHHI", data, 36, fat_sectors, 0, 0, 2)
    else:
        struct.pack_into("<H", data, 22, fat_sectors)
    data[510:512] = b"\x55\xaa"
    end = (1 << min(28, entry_bits)) - 1
    for cluster in range(2, 6):
        link(data, entry_bits, cluster, end)
    root_offset = data_sector * _SECTOR_BYTES if entry_bits == 32 else root_sector * _SECTOR_BYTES
    label = b"ROOM       ".ljust(32, b"\x08")
    for offset, content in (
        (root_offset, label + _entries(directory, _DIRECTORY, 3)),
        ((data_sector + 1) * _SECTOR_BYTES, _entries("BOOT", _DIRECTORY, 4)),
        ((data_sector + 2) * _SECTOR_BYTES, b"\xe5".ljust(32, b"x") + _entries(loader, 0, 5)),
    ):
        data[offset : offset + len(content)] = content
    return data


def link(data: bytearray, entry_bits: int, cluster: int, successor: int) -> None:
    """Make ``successor`` the cluster that follows ``cluster``."""
    bit = _RESERVED_SECTORS * _SECTOR_BYTES * 8 + cluster * entry_bits
    mask = ((1 << entry_bits) - 1) << bit % 8
    word = int.from_bytes(data[bit // 8 : bit // 8 + 4], "little")
    data[bit // 8 : bit // 8 + 4] = (word & ~mask | successor << bit % 8).to_bytes(4, "little")


def _entries(name: str, attributes: int, cluster: int) -> bytes:
    """Return the entries of one file: a long name if it doesn't fit into 8 and 3 characters."""
    base, _, extension = name.upper().partition(".")
    fits = len(base) <= 8 and len(extension) <= 3
    short = f"{base if fits else base[:6] + '~1':8}{extension[:3]:3}".encode()
    entry = short + struct.pack("<B8xH4xHI", attributes, 0, cluster, 0)
    return entry if fits else _long_name(name, short) + entry


def _long_name(name: str, short: bytes) -> bytes:
    checksum = 0
    for byte in short:
        checksum = ((checksum & 1) * 0x80 + (checksum >> 1) + byte) & 0xFF
    parts = [name[start : start + 13] for start in range(0, len(name), 13)]
    entries = []
    for number, part in enumerate(parts, 1):
        text = part if len(part) == 13 else part + "\0"
        units = text.encode("utf-16-le").ljust(26, b"\xff")
        mark = 0x40 if number == len(parts) else 0
        entries.append(
            struct.pack(
                "<B10sBBB12s2x4s",
                number | mark,
                units[:10],
                _LONG_NAME,
                0,
                checksum,
                units[10:22],
                units[22:],
            )
        )
    return b"".join(reversed(entries))
