"""Ranges of an ext filesystem that hold copies of other data: its journal, and swap files."""

from __future__ import annotations

import struct
from typing import Final

from protocol.constants import KIB
from protocol.disk.disk_reads import Read
from protocol.disk.filesystem_magic import is_hibernated, swap_page_bytes
from protocol.errors import ImageError, SourceUncleanError
from sender.imaging.contents.ext_files import JOURNAL_INODE, ExtFiles

_COMPATIBLE_HAS_JOURNAL: Final = 0x4
_JOURNAL_MAGIC: Final = 0xC03B3998
_HEAD_BYTES: Final = 64 * KIB


def journal_body_untrusted(files: ExtFiles, read: Read) -> list[tuple[int, int]]:
    """Return the ranges of the journal behind its superblock, in bytes of the filesystem.

    A clean journal's superblock says that it is empty, and the kernel and e2fsck read nothing behind it; old blocks
    there are copies of folders, inodes and, with ``data=journal``, of files.
    https://docs.kernel.org/filesystems/ext4/journal.html

    Raises:
        ExtError: the filesystem is damaged, or has unsupported features.
        ImageError: the journal is on another device.
        SourceUncleanError: the journal isn't empty.
    """
    superblock = read(KIB, KIB)
    (compatible,) = struct.unpack_from("<I", superblock, 0x5C)
    (inode,) = struct.unpack_from("<I", superblock, 0xE0)
    (log_size,) = struct.unpack_from("<I", superblock, 0x18)
    if not compatible & _COMPATIBLE_HAS_JOURNAL:
        return []
    if inode != JOURNAL_INODE:
        raise ImageError("its journal is on another device: add an internal one on the reference machine")
    ranges = files.ranges_untrusted(files.inode_untrusted(JOURNAL_INODE))
    head = read(ranges[0][0], KIB) if ranges else b""
    (magic,) = struct.unpack_from(">I", head.ljust(KIB, b"\0"), 0)
    (start,) = struct.unpack_from(">I", head.ljust(KIB, b"\0"), 0x1C)
    if magic != _JOURNAL_MAGIC:
        raise ImageError("its journal is damaged: run `e2fsck -f` on the reference machine")
    if start:
        raise SourceUncleanError("its journal isn't empty: mount and unmount it, and pack again")
    return _without_start(ranges, KIB << log_size)


def swap_file_body_untrusted(files: ExtFiles, path: str) -> list[tuple[int, int]]:
    """Return the ranges of a swap file behind its first page, in bytes of the filesystem; none if it isn't one.

    Raises:
        ExtError: the filesystem is damaged, or has unsupported features.
        SourceUncleanError: a machine is hibernated in it.
    """
    inode = files.find_untrusted(path)
    if inode is None:
        return []
    head = files.read_inode_untrusted(inode, _HEAD_BYTES)
    page_bytes = swap_page_bytes(head)
    if not page_bytes:
        return []
    if is_hibernated(head):
        raise SourceUncleanError(f"a machine is hibernated in {path}: wake it, shut it down, and pack again")
    return _without_start(files.ranges_untrusted(inode), page_bytes)


def _without_start(ranges: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Return ``ranges`` without their first ``length`` bytes."""
    rest = []
    for start, stop in ranges:
        skipped = min(length, stop - start)
        length -= skipped
        if start + skipped < stop:
            rest.append((start + skipped, stop))
    return rest
