"""A disk's content, judged by its first and last bytes: helps people choose a disk, never refuses one."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocol.constants import BOOT_STICK_LABEL
from protocol.disk.disk_reads import reader_from
from protocol.disk.filesystem_magic import container_signature
from protocol.disk.partition_table import DiskLayout, Partition, TableKind, parse_layout_untrusted
from protocol.image.incomplete_marker import MARKER_BYTES, parse_marker_untrusted

_FAT32_LABEL_OFFSET: Final = 71
"""Extended BIOS parameter block of FAT32 (Microsoft's FAT specification, 3.3)."""
_ISO_DESCRIPTOR_OFFSET: Final = 16 * 2048
_ISO_DESCRIPTOR: Final = b"\x01CD001"
"""Primary volume descriptor (ECMA-119, 8.4); the volume identifier is at its byte 40."""

_Read = Callable[[int, int], bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class DiskContents:
    """A summary of a disk's content."""

    text: str
    """Text for people, such as ``GPT: vfat, ext4, swap``."""
    incomplete_image: str = ""
    """The name of an image whose restore or cast was started and not finished."""
    layout: DiskLayout | None = None
    is_boot_stick: bool = False
    """It is a stick or disc of ``diskcast netboot usb``."""


def read_contents(path: Path, size_bytes: int, sector_bytes: int) -> DiskContents:
    """Read a disk and summarise its content; for an unreadable disk the summary states the error."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return DiskContents(f"can't be read: {error.strerror}")
    try:
        return parse_contents(lambda offset, length: os.pread(fd, length, offset), size_bytes, sector_bytes)
    except OSError as error:
        return DiskContents(f"can't be read: {error.strerror}")
    finally:
        os.close(fd)


def parse_contents(read: _Read, size_bytes: int, sector_bytes: int) -> DiskContents:
    """Summarise a disk's content.

    Args:
        read: returns the bytes at an offset, by length; its errors are passed on.
        size_bytes: size of the disk.
        sector_bytes: logical sector size of the disk.
    """
    marker = parse_marker_untrusted(read(0, MARKER_BYTES))
    if marker is not None:
        return DiskContents(f"incomplete image {marker.image_name}", marker.image_name)
    layout = parse_layout_untrusted(read, size_bytes, sector_bytes=sector_bytes)
    if _is_boot_stick(read, layout):
        return DiskContents("a boot stick of diskcast", layout=layout, is_boot_stick=True)
    if layout.table is TableKind.NONE:
        found = layout.filesystem or container_signature(read, size_bytes) or "nothing known"
        return DiskContents(found, layout=layout)
    inside = Counter(
        _describe(partition, read) for partition in layout.partitions if not partition.is_extended
    )
    listed = ", ".join(name if count == 1 else f"{count} {name}" for name, count in inside.items())
    return DiskContents(f"{layout.table.upper()}: {listed or 'no partitions'}", layout=layout)


def _is_boot_stick(read: _Read, layout: DiskLayout) -> bool:
    label = BOOT_STICK_LABEL.encode()
    if read(_ISO_DESCRIPTOR_OFFSET, 6) == _ISO_DESCRIPTOR:
        return read(_ISO_DESCRIPTOR_OFFSET + 40, 32).rstrip() == label
    starts = (partition.start_bytes for partition in layout.partitions if partition.filesystem == "vfat")
    return any(read(start + _FAT32_LABEL_OFFSET, 11).rstrip() == label for start in starts)


def _describe(partition: Partition, read: _Read) -> str:
    within = reader_from(read, partition.start_bytes, partition.size_bytes)
    # A RAID member may look like the filesystem on the whole array.
    return container_signature(within, partition.size_bytes) or partition.filesystem or "unknown"
