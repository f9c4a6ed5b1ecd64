"""What is on a disk, told by reading its first and last bytes: for people who choose one, never to refuse one."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from protocol.disk.disk_layout import DiskLayout, Partition, TableKind, parse_layout_untrusted
from protocol.disk.filesystem_magic import container_signature
from protocol.disk.partition_table import reader_from
from protocol.image.incomplete_marker import MARKER_BYTES, parse_marker_untrusted

_Read = Callable[[int, int], bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """What was found."""

    text: str
    """``GPT: vfat, ext4, swap``."""
    incomplete_image: str = ""
    """The name of the image that a restore or cast began to write and didn't finish."""
    layout: DiskLayout | None = None


def look(path: Path, size_bytes: int, sector_bytes: int) -> Contents:
    """Read what is on a disk; one that can't be read says so."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return Contents(f"can't be read: {error.strerror}")
    try:
        return contents_of(lambda offset, length: os.pread(fd, length, offset), size_bytes, sector_bytes)
    except OSError as error:
        return Contents(f"can't be read: {error.strerror}")
    finally:
        os.close(fd)


def contents_of(read: _Read, size_bytes: int, sector_bytes: int) -> Contents:
    """What the bytes of a disk mean.

    Args:
        read: its bytes at an offset, by length; what it raises is passed on.
        size_bytes: the disk's.
        sector_bytes: its logical sectors.
    """
    marker = parse_marker_untrusted(read(0, MARKER_BYTES))
    if marker is not None:
        return Contents(f"incomplete image {marker.image_name}", marker.image_name)
    layout = parse_layout_untrusted(read, size_bytes, sector_bytes=sector_bytes)
    if layout.table is TableKind.NONE:
        found = layout.filesystem or container_signature(read, size_bytes) or "nothing known"
        return Contents(found, layout=layout)
    inside = Counter(
        _describe(partition, read) for partition in layout.partitions if not partition.is_extended
    )
    listed = ", ".join(name if count == 1 else f"{count} {name}" for name, count in inside.items())
    return Contents(f"{layout.table.upper()}: {listed or 'no partitions'}", layout=layout)


def _describe(partition: Partition, read: _Read) -> str:
    within = reader_from(read, partition.start_bytes, partition.size_bytes)
    # A RAID member may look like the filesystem that is spread over all of them.
    return container_signature(within, partition.size_bytes) or partition.filesystem or "unknown"
