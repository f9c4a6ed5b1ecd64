"""Detection of filesystems by their magic numbers, as libblkid does it; the bytes are untrusted."""

from __future__ import annotations

from typing import Final

from protocol.constants import KIB
from protocol.disk.disk_reads import Read

FILESYSTEMS: Final = ("ext4", "xfs", "btrfs", "ntfs", "vfat", "exfat", "swap")
"""Results of :func:`detect_filesystem`; ``ext4`` includes ext2 and ext3, ``vfat`` FAT12, 16 and 32."""

_HEAD_BYTES: Final = 128 * KIB
"""btrfs has the furthest magic, at 64 KiB; swap's is at the end of the first page, of at most 64 KiB."""

_EXT_JOURNAL_DEVICE: Final = 0x8
"""Incompatible feature of an ext superblock of a journal device, which isn't a filesystem."""

_SWAP_MAGICS: Final = (b"SWAPSPACE2", b"SWAP-SPACE")
_HIBERNATION_MAGICS: Final = (b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001")
PAGE_BYTES_CHOICES: Final = (4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB)
"""Page sizes of Linux: swap's magic ends the first page."""


def detect_filesystem(read: Read) -> str:
    """Return the filesystem at the start of the range that ``read`` reads, one of :data:`FILESYSTEMS`.

    Empty if none is found, or several: all but one are leftovers, and only the operator knows which.
    """
    found = filesystem_signatures(read)
    return found[0] if len(found) == 1 else ""


def filesystem_signatures(read: Read) -> tuple[str, ...]:
    """Return all filesystems that have their magic there."""
    head = read(0, _HEAD_BYTES)
    checks = {
        "ext4": _is_ext(head),
        "xfs": head[:4] == b"XFSB",
        "btrfs": head[0x10040:0x10048] == b"_BHRfS_M",
        "ntfs": head[3:11] == b"NTFS    " and _is_boot_sector(head),
        "vfat": _is_fat(head),
        "exfat": head[3:11] == b"EXFAT   " and _is_boot_sector(head),
        "swap": swap_page_bytes(head) > 0,
    }
    return tuple(name for name, there in checks.items() if there)


def swap_page_bytes(head: bytes) -> int:
    """Return the page size of the swap area that ``head`` starts, hibernated or not; 0 if it isn't one."""
    for page_bytes in PAGE_BYTES_CHOICES:
        if head[page_bytes - 10 : page_bytes] in (*_SWAP_MAGICS, *_HIBERNATION_MAGICS):
            return page_bytes
    return 0


def is_hibernated(head: bytes) -> bool:
    """Return whether a swap area holds the memory of a hibernated machine."""
    page_bytes = swap_page_bytes(head)
    return page_bytes > 0 and head[page_bytes - 10 : page_bytes] in _HIBERNATION_MAGICS


def container_signature(read: Read, size_bytes: int) -> str:
    """Return the container format that a disk or partition belongs to; empty if none is found.

    That is a volume manager, encryption, or a RAID. A RAID with its superblock at the end makes its first member look
    like the filesystem that is spread over all members.
    """
    head = read(0, 8 * KIB)
    if any(head[sector * 512 : sector * 512 + 8] == b"LABELONE" for sector in range(4)):
        return "LVM"
    if head[:6] == b"LUKS\xba\xbe":
        return "LUKS encryption"
    if head[3:11] == b"-FVE-FS-":
        return "BitLocker encryption"
    md_magic = b"\xfc\x4e\x2b\xa9"
    old_offset = (size_bytes & ~(64 * KIB - 1)) - 64 * KIB
    end_offset = (size_bytes - 8 * KIB) & ~(4 * KIB - 1)
    for offset in (0, 4 * KIB, end_offset, old_offset):
        if offset >= 0 and read(offset, 4) in (md_magic, md_magic[::-1]):
            return "Linux RAID"
    for sector_bytes in (512, 4096):
        last_offset = size_bytes // sector_bytes * sector_bytes - sector_bytes
        if last_offset > 0 and read(last_offset, 4) == b"\xde\x11\xde\x11":
            return "firmware RAID (DDF)"
        if last_offset > sector_bytes and read(last_offset - sector_bytes, 22) == b"Intel Raid ISM Cfg Sig":
            return "firmware RAID (Intel)"
    return ""


def _is_boot_sector(head: bytes) -> bool:
    return head[510:512] == b"\x55\xaa"


def _is_ext(head: bytes) -> bool:
    return head[1080:1082] == b"\x53\xef" and not (
        int.from_bytes(head[1120:1124], "little") & _EXT_JOURNAL_DEVICE
    )


def _is_fat(head: bytes) -> bool:
    """Return whether the BIOS parameter block is consistent: FAT has no magic that every tool writes."""
    if not _is_boot_sector(head) or head[0] not in (0xEB, 0xE9) or head[3:11] in (b"NTFS    ", b"EXFAT   "):
        return False
    sector_bytes = int.from_bytes(head[11:13], "little")
    cluster_sectors, reserved_sectors, fat_count = head[13], int.from_bytes(head[14:16], "little"), head[16]
    media = head[21]
    if sector_bytes not in (512, 1024, 2048, 4096) or cluster_sectors.bit_count() != 1:
        return False
    if not reserved_sectors or not 1 <= fat_count <= 2 or (media < 0xF8 and media != 0xF0):
        return False
    fat_sectors = int.from_bytes(head[22:24], "little") or int.from_bytes(head[36:40], "little")
    sectors = int.from_bytes(head[19:21], "little") or int.from_bytes(head[32:36], "little")
    return 0 < fat_sectors * fat_count + reserved_sectors < sectors
