"""The rule for logical sectors: an image's structures count in sectors, and a disk must have the same ones."""

from __future__ import annotations

import dataclasses
from typing import Final

from protocol.disk.partition_table import DiskLayout, TableKind

_SECTOR_BOUND_FILESYSTEMS: Final = frozenset({"vfat", "exfat", "ntfs", "xfs"})
"""Filesystems with a sector size of their own, which can't be mounted from a device with larger sectors."""


@dataclasses.dataclass(frozen=True, slots=True)
class SectorNeeds:
    """The sectors that an image needs.

    Attributes:
        table: kind of the partition table; None for older images, which don't say.
        sector_bytes: sectors in which the image counts; None if they are unknown.
        filesystem: filesystem of an image without a partition table.
    """

    raw_bytes: int
    table: TableKind | None = None
    sector_bytes: int | None = None
    filesystem: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class SectorProblem:
    """The reason against a disk, to read after its name and "has", and the fix."""

    reason: str
    fix: str


def sector_needs(layout: DiskLayout | None, sector_bytes: int | None, raw_bytes: int) -> SectorNeeds:
    """Return the sectors that an image needs.

    Args:
        layout: layout of the imaged disk; None for older images.
        sector_bytes: logical sectors of the imaged disk, or None.
        raw_bytes: size of the image.
    """
    if layout is None:
        return SectorNeeds(raw_bytes, None, sector_bytes)
    counted = layout.sector_bytes if layout.table is not TableKind.NONE else sector_bytes
    return SectorNeeds(raw_bytes, layout.table, counted, layout.filesystem)


def sector_problem(needs: SectorNeeds, sector_bytes: int) -> SectorProblem | None:
    """Return the reason why an image doesn't work on a disk with these logical sectors; None if it does."""
    counted, table = needs.sector_bytes, needs.table
    if counted is not None and counted != sector_bytes and table is not TableKind.NONE:
        what = f"the image's {table.upper()}" if table else "the image"
        return SectorProblem(
            f"logical sectors of {sector_bytes} bytes, {what} counts in sectors of {counted} bytes: its partitions "
            "would not be found",
            _fix(counted, sector_bytes),
        )
    if counted is not None and counted < sector_bytes and needs.filesystem in _SECTOR_BOUND_FILESYSTEMS:
        return SectorProblem(
            f"logical sectors of {sector_bytes} bytes, the image's {needs.filesystem} filesystem has {counted}: it "
            "couldn't be mounted",
            _fix(counted, sector_bytes),
        )
    if needs.raw_bytes % sector_bytes:
        return SectorProblem(
            f"sectors of {sector_bytes} bytes, and the image's {needs.raw_bytes} bytes aren't a whole number of them",
            "lengthen the image's source to whole sectors (truncate --size=%4096) and pack it again",
        )
    return None


def _fix(wanted_bytes: int, sector_bytes: int) -> str:
    return (
        f"choose a disk with {wanted_bytes}-byte sectors, switch this one if it can (nvme format, sg_format: both "
        f"erase it), or pack an image for {sector_bytes}-byte sectors"
    )
