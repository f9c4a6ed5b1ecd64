"""Filesystem superblocks: size, clean state and free space.

Only the fields that decide whether a filesystem's metadata can be trusted, and those that its tools don't show. The
layouts are the on-disk formats in the filesystems' documentation and in the kernel.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from protocol.constants import GIB, KIB, MIB
from protocol.disk.disk_reads import Read
from protocol.disk.fat import FatError, FatGeometry, fat_geometry_untrusted
from protocol.disk.filesystem_magic import is_hibernated, swap_page_bytes

Range = tuple[int, int]
"""Half-open, in bytes from the filesystem's start."""


class UsageUnknownError(Exception):
    """The space that a filesystem uses can't be determined with certainty, so all of it is packed.

    The message is the reason, shown to the operator.
    """


class FilesystemUncleanError(UsageUnknownError):
    """The filesystem has a journal to replay or errors, or a machine is hibernated in it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Superblock:
    """The superblock of a filesystem that was unmounted cleanly."""

    size_bytes: int
    unit_bytes: int
    """Block size; for FAT, exFAT and NTFS the cluster size."""
    free_bytes: int | None = None
    """Free bytes at most; None if the superblock has no reliable count."""
    always_used: tuple[Range, ...] = ()
    """Ranges that are packed even if a tool lists them as free; ascending."""


_UNCLEAN: Final = "it wasn't unmounted cleanly: mount and unmount it, or run its fsck, and pack again"
_DAMAGED: Final = "its superblock is damaged"


def read_superblock_untrusted(filesystem: str, read: Read, area_bytes: int) -> Superblock:
    """Return the superblock of ``filesystem`` in an area of ``area_bytes``.

    Raises:
        UsageUnknownError: the filesystem isn't clean, is truncated, or has unsupported features.
    """
    try:
        superblock = _PARSERS[filesystem](read)
    except struct.error as error:
        raise UsageUnknownError(_DAMAGED) from error
    if not 0 < superblock.size_bytes <= area_bytes:
        raise UsageUnknownError(
            f"its superblock says {superblock.size_bytes} bytes, but there are only {area_bytes}: it is truncated, "
            "or part of a RAID"
        )
    return superblock


def _parse_ext(read: Read) -> Superblock:
    data = read(KIB, KIB)
    block_count, _, free_count, _, _, log_size = struct.unpack_from("<IIIIII", data, 0x4)
    (state,) = struct.unpack_from("<H", data, 0x3A)
    incompatible, read_only_compatible = struct.unpack_from("<II", data, 0x60)
    if incompatible & 0x4 or read_only_compatible & 0x10000 or state & 3 != 1:
        # A journal to replay or orphans to free; not marked as valid, or marked as erroneous.
        raise FilesystemUncleanError(_UNCLEAN)
    if incompatible & 0x80:  # 64bit
        high_blocks, _, high_free = struct.unpack_from("<III", data, 0x150)
        block_count += high_blocks << 32
        free_count += high_free << 32
    if log_size > 6:
        raise UsageUnknownError(_DAMAGED)
    unit_bytes = KIB << log_size
    return Superblock(block_count * unit_bytes, unit_bytes, free_count * unit_bytes)


def _parse_xfs(read: Read) -> Superblock:
    """Parse all but the state of the log, which isn't in the superblock: a tool checks it."""
    data = read(0, 512)
    unit_bytes, block_count = struct.unpack_from(">IQ", data, 4)
    (log_start,) = struct.unpack_from(">Q", data, 48)
    version, in_progress = struct.unpack_from(">H", data, 100)[0] & 0xF, data[126]
    (free_count,) = struct.unpack_from(">Q", data, 144)
    (incompatible,) = struct.unpack_from(">I", data, 216)
    if not log_start:
        raise UsageUnknownError("its log is on another device")
    if in_progress or (version == 5 and incompatible & 0x10):
        raise FilesystemUncleanError("it needs repair: run xfs_repair and pack again")
    return Superblock(block_count * unit_bytes, unit_bytes, free_count * unit_bytes)


_BTRFS_SUPERBLOCKS: Final = (64 * KIB, 64 * MIB, 256 * GIB)
_BTRFS_KNOWN_FEATURES: Final = 0xFFF & ~0x80 & ~0x800 | 0x10000
"""Incompatible features up to simple quotas, without parity RAID and zoned devices."""


def _parse_btrfs(read: Read) -> Superblock:
    data = read(64 * KIB, 4 * KIB)
    flags, log_root = struct.unpack_from("<Q", data, 56)[0], struct.unpack_from("<Q", data, 96)[0]
    total_bytes, used_bytes, _, device_count = struct.unpack_from("<QQQQ", data, 112)
    (unit_bytes,) = struct.unpack_from("<I", data, 144)
    (features,) = struct.unpack_from("<Q", data, 188)
    if log_root:
        raise FilesystemUncleanError(_UNCLEAN)
    if device_count != 1:
        raise UsageUnknownError(f"it is spread over {device_count} devices")
    if flags & ~1 or features & ~_BTRFS_KNOWN_FEATURES:
        raise UsageUnknownError("it has unsupported features")
    always_used = (
        (0, MIB),
        *((start, start + 64 * KIB) for start in _BTRFS_SUPERBLOCKS),
    )  # boot loaders use the first MiB
    return Superblock(total_bytes, unit_bytes, total_bytes - used_bytes, always_used)


def _parse_ntfs(read: Read) -> Superblock:
    """Parse the size only: the clean state is in files, which tools check.

    The backup boot sector is packed because it is after the end of the volume.
    """
    data = read(0, 512)
    (sector_bytes,) = struct.unpack_from("<H", data, 11)
    (sector_count,) = struct.unpack_from("<Q", data, 40)
    cluster_sectors = data[13] if data[13] <= 0x80 else 1 << (256 - data[13])
    return Superblock(sector_count * sector_bytes, cluster_sectors * sector_bytes)


def fat_geometry(read: Read) -> FatGeometry:
    """Parse the boot sector of a FAT.

    Raises:
        UsageUnknownError: it is damaged, or has unsupported features.
    """
    try:
        return fat_geometry_untrusted(read)
    except FatError as error:
        raise UsageUnknownError(str(error)) from error


def _parse_fat(read: Read) -> Superblock:
    fat = fat_geometry(read)
    second_entry = read(fat.fat_offset, 8)[fat.entry_bits // 8 : fat.entry_bits // 4]
    # Windows marks a clean volume without disk errors in the second entry's highest bits; Linux sets the byte in the
    # boot sector while the volume is mounted. FAT12 has only that byte.
    marks = int.from_bytes(second_entry, "little") >> {12: 0, 16: 14, 32: 26}[fat.entry_bits] & 3
    if (fat.entry_bits > 12 and marks != 3) or read(65 if fat.entry_bits == 32 else 37, 1) != b"\0":
        raise FilesystemUncleanError(_UNCLEAN)
    free_bytes = fat.cluster_count * fat.cluster_bytes
    return Superblock(fat.size_bytes, fat.cluster_bytes, free_bytes, ((0, fat.data_offset),))


def _parse_exfat(read: Read) -> Superblock:
    data = read(0, 512)
    (sector_count,) = struct.unpack_from("<Q", data, 72)
    heap_sector, cluster_count = struct.unpack_from("<II", data, 88)
    (flags,) = struct.unpack_from("<H", data, 106)
    sector_shift, cluster_shift, fat_count = struct.unpack_from("<BBB", data, 108)
    if not 9 <= sector_shift <= 12 or cluster_shift > 25 - sector_shift:
        raise UsageUnknownError(_DAMAGED)
    if flags & 0x6:  # dirty, or the media failed
        raise FilesystemUncleanError(_UNCLEAN)
    if fat_count != 1 or flags & 0x1:
        raise UsageUnknownError("it has unsupported features")
    unit_bytes = 1 << (sector_shift + cluster_shift)
    return Superblock(
        sector_count << sector_shift,
        unit_bytes,
        cluster_count * unit_bytes,
        ((0, heap_sector << sector_shift),),
    )


def _parse_swap(read: Read) -> Superblock:
    """Parse a swap area: all but the first page, which has the label and the bad pages, is free."""
    data = read(0, 64 * KIB)
    page_bytes = swap_page_bytes(data)
    version, last_page = struct.unpack_from("<II", data, KIB)
    if is_hibernated(data):
        raise FilesystemUncleanError(
            "a machine is hibernated in it: wake the machine, shut it down, and pack again"
        )
    if version != 1 or not page_bytes:
        raise UsageUnknownError("it is of an unknown version")
    size_bytes = (last_page + 1) * page_bytes
    return Superblock(size_bytes, page_bytes, size_bytes - page_bytes, ((0, page_bytes),))


_PARSERS: Final[Mapping[str, Callable[[Read], Superblock]]] = MappingProxyType(
    {
        "ext4": _parse_ext,
        "xfs": _parse_xfs,
        "btrfs": _parse_btrfs,
        "ntfs": _parse_ntfs,
        "vfat": _parse_fat,
        "exfat": _parse_exfat,
        "swap": _parse_swap,
    }
)
