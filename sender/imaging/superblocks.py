"""What filesystems say of themselves at their start: how large, whether put away cleanly, how much is free.

Only what decides whether their books may be believed, and what the tools that read those books don't say. The layouts
are the filesystems' on-disk formats as their documentation and the kernel have them.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from protocol.constants import GIB, KIB, MIB
from protocol.disk.disk_reads import Read
from protocol.disk.filesystem_magic import is_hibernated, swap_page_bytes

Range = tuple[int, int]
"""Half-open, in bytes from the filesystem's start."""


class UsageUnknownError(Exception):
    """What a filesystem uses can't be learnt for sure: all of it is kept. The message is the reason, for people."""


@dataclasses.dataclass(frozen=True, slots=True)
class FilesystemHead:
    """One filesystem that was put away cleanly."""

    size_bytes: int
    unit_bytes: int
    """Its block; for the FATs and NTFS a cluster."""
    free_bytes: int | None = None
    """What it says is free; None where it doesn't say, or says what can't be relied on."""
    kept: tuple[Range, ...] = ()
    """Never free, whatever a tool says."""


_UNCLEAN: Final = "it wasn't unmounted cleanly: mount and unmount it, or run its fsck, and pack again"
_DAMAGED: Final = "its superblock is damaged"


def read_head(filesystem: str, read: Read, area_bytes: int) -> FilesystemHead:
    """The head of ``filesystem`` in an area of ``area_bytes``.

    Raises:
        UsageUnknownError: it isn't clean, isn't whole, or has features that aren't known here.
    """
    try:
        head = _HEADS[filesystem](read)
    except struct.error as error:
        raise UsageUnknownError(_DAMAGED) from error
    if not 0 < head.size_bytes <= area_bytes:
        raise UsageUnknownError(
            f"it says that it has {head.size_bytes} bytes, but {area_bytes} are there: it is cut, or part of a RAID"
        )
    return head


def _ext_head(read: Read) -> FilesystemHead:
    data = read(KIB, KIB)
    block_count, _, free_count, _, _, log_size = struct.unpack_from("<IIIIII", data, 0x4)
    (state,) = struct.unpack_from("<H", data, 0x3A)
    incompatible, read_only_compatible = struct.unpack_from("<II", data, 0x60)
    if incompatible & 0x4 or read_only_compatible & 0x10000 or state & 3 != 1:
        # A journal to be replayed, orphans to be freed; not marked valid, or marked erroneous.
        raise UsageUnknownError(_UNCLEAN)
    if incompatible & 0x80:  # 64bit
        high_blocks, _, high_free = struct.unpack_from("<III", data, 0x150)
        block_count += high_blocks << 32
        free_count += high_free << 32
    if log_size > 6:
        raise UsageUnknownError(_DAMAGED)
    unit_bytes = KIB << log_size
    return FilesystemHead(block_count * unit_bytes, unit_bytes, free_count * unit_bytes)


def _xfs_head(read: Read) -> FilesystemHead:
    """The log, which the head doesn't speak of, is looked at by a tool."""
    data = read(0, 512)
    unit_bytes, block_count = struct.unpack_from(">IQ", data, 4)
    (log_start,) = struct.unpack_from(">Q", data, 48)
    version, in_progress = struct.unpack_from(">H", data, 100)[0] & 0xF, data[126]
    (free_count,) = struct.unpack_from(">Q", data, 144)
    (incompatible,) = struct.unpack_from(">I", data, 216)
    if not log_start:
        raise UsageUnknownError("its log is on another device")
    if in_progress or (version == 5 and incompatible & 0x10):
        raise UsageUnknownError("it needs repair: run xfs_repair and pack again")
    return FilesystemHead(block_count * unit_bytes, unit_bytes, free_count * unit_bytes)


_BTRFS_SUPERBLOCKS: Final = (64 * KIB, 64 * MIB, 256 * GIB)
_BTRFS_KNOWN_FEATURES: Final = 0xFFF & ~0x80 & ~0x800 | 0x10000
"""Incompatible features of filesystems on one device up to simple quotas; RAID with parity and zones aren't."""


def _btrfs_head(read: Read) -> FilesystemHead:
    data = read(64 * KIB, 4 * KIB)
    flags, log_root = struct.unpack_from("<Q", data, 56)[0], struct.unpack_from("<Q", data, 96)[0]
    total_bytes, used_bytes, _, device_count = struct.unpack_from("<QQQQ", data, 112)
    (unit_bytes,) = struct.unpack_from("<I", data, 144)
    (features,) = struct.unpack_from("<Q", data, 188)
    if log_root:
        raise UsageUnknownError(_UNCLEAN)
    if device_count != 1:
        raise UsageUnknownError(f"it is spread over {device_count} devices")
    if flags & ~1 or features & ~_BTRFS_KNOWN_FEATURES:
        raise UsageUnknownError("it has features that aren't known here")
    kept = (
        (0, MIB),
        *((start, start + 64 * KIB) for start in _BTRFS_SUPERBLOCKS),
    )  # the first MiB is boot loaders'
    return FilesystemHead(total_bytes, unit_bytes, total_bytes - used_bytes, kept)


def _ntfs_head(read: Read) -> FilesystemHead:
    """Whether it is clean is in files, at which tools look. Its backup boot sector is behind its end: so it is kept."""
    data = read(0, 512)
    (sector_bytes,) = struct.unpack_from("<H", data, 11)
    (sector_count,) = struct.unpack_from("<Q", data, 40)
    cluster_sectors = data[13] if data[13] <= 0x80 else 1 << (256 - data[13])
    return FilesystemHead(sector_count * sector_bytes, cluster_sectors * sector_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class FatGeometry:
    """Where a FAT filesystem has what."""

    size_bytes: int
    fat_offset: int
    fat_bytes: int
    fat_count: int
    data_offset: int
    cluster_bytes: int
    cluster_count: int
    entry_bits: int
    """12, 16 or 32."""


def fat_geometry(read: Read) -> FatGeometry:
    """From the boot sector (Microsoft's FAT specification 1.03, pages 9 to 17).

    Raises:
        UsageUnknownError: it is damaged, or has features that aren't known here.
    """
    data = read(0, 512)
    sector_bytes, cluster_sectors, reserved, fat_count, root_entries, sectors = struct.unpack_from(
        "<HBHBHH", data, 11
    )
    (fat_sectors,) = struct.unpack_from("<H", data, 22)
    if not (sector_bytes and cluster_sectors and fat_count):
        raise UsageUnknownError(_DAMAGED)
    wide = fat_sectors == 0  # FAT32
    if wide:
        fat_sectors, flags = struct.unpack_from("<IH", data, 36)
        if flags & 0x80:
            raise UsageUnknownError("only one of its allocation tables is in use")
    if not sectors:
        (sectors,) = struct.unpack_from("<I", data, 32)
    data_sector = reserved + fat_count * fat_sectors + -(-root_entries * 32 // sector_bytes)
    cluster_count = (sectors - data_sector) // cluster_sectors
    entry_bits = 32 if wide else 12 if cluster_count < 4085 else 16
    if cluster_count < 1 or (cluster_count + 2) * entry_bits > fat_sectors * sector_bytes * 8:
        raise UsageUnknownError(_DAMAGED)
    return FatGeometry(
        sectors * sector_bytes,
        reserved * sector_bytes,
        fat_sectors * sector_bytes,
        fat_count,
        data_sector * sector_bytes,
        cluster_sectors * sector_bytes,
        cluster_count,
        entry_bits,
    )


def _fat_head(read: Read) -> FilesystemHead:
    fat = fat_geometry(read)
    second_entry = read(fat.fat_offset, 8)[fat.entry_bits // 8 : fat.entry_bits // 4]
    # The second entry's highest bits are Windows's marks of a clean volume without disk errors, the byte in the boot
    # sector is what Linux sets while it is mounted. FAT12 has only the latter.
    marks = int.from_bytes(second_entry, "little") >> {12: 0, 16: 14, 32: 26}[fat.entry_bits] & 3
    if (fat.entry_bits > 12 and marks != 3) or read(65 if fat.entry_bits == 32 else 37, 1) != b"\0":
        raise UsageUnknownError(_UNCLEAN)
    free_bytes = fat.cluster_count * fat.cluster_bytes
    return FilesystemHead(fat.size_bytes, fat.cluster_bytes, free_bytes, ((0, fat.data_offset),))


def _exfat_head(read: Read) -> FilesystemHead:
    data = read(0, 512)
    (sector_count,) = struct.unpack_from("<Q", data, 72)
    heap_sector, cluster_count = struct.unpack_from("<II", data, 88)
    (flags,) = struct.unpack_from("<H", data, 106)
    sector_shift, cluster_shift, fat_count = struct.unpack_from("<BBB", data, 108)
    if not 9 <= sector_shift <= 12 or cluster_shift > 25 - sector_shift:
        raise UsageUnknownError(_DAMAGED)
    if flags & 0x6:  # dirty, or the media failed
        raise UsageUnknownError(_UNCLEAN)
    if fat_count != 1 or flags & 0x1:
        raise UsageUnknownError("it has features that aren't known here")
    unit_bytes = 1 << (sector_shift + cluster_shift)
    return FilesystemHead(
        sector_count << sector_shift,
        unit_bytes,
        cluster_count * unit_bytes,
        ((0, heap_sector << sector_shift),),
    )


def _swap_head(read: Read) -> FilesystemHead:
    """All but the first page, with label and bad pages, is free."""
    data = read(0, 64 * KIB)
    page_bytes = swap_page_bytes(data)
    version, last_page = struct.unpack_from("<II", data, KIB)
    if is_hibernated(data):
        raise UsageUnknownError("a machine hibernates in it: wake it and shut it down, and pack again")
    if version != 1 or not page_bytes:
        raise UsageUnknownError("it is of an unknown version")
    size_bytes = (last_page + 1) * page_bytes
    return FilesystemHead(size_bytes, page_bytes, size_bytes - page_bytes, ((0, page_bytes),))


_HEADS: Final[Mapping[str, Callable[[Read], FilesystemHead]]] = MappingProxyType(
    {
        "ext4": _ext_head,
        "xfs": _xfs_head,
        "btrfs": _btrfs_head,
        "ntfs": _ntfs_head,
        "vfat": _fat_head,
        "exfat": _exfat_head,
        "swap": _swap_head,
    }
)
