"""What the kernel says about a block device in /sys (Documentation/ABI/stable/sysfs-block)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Final

SYSFS: Final = Path("/sys")


@dataclasses.dataclass(frozen=True, slots=True)
class DiscardUnit:
    """What a device discards as a whole: offsets ``offset_bytes + n * unit_bytes``; ``unit_bytes`` 0: it doesn't."""

    unit_bytes: int
    offset_bytes: int = 0


def device_folder(device_number: int, sysfs: Path = SYSFS) -> Path:
    """The folder of a disk or partition (``st_rdev`` of its node)."""
    return sysfs / "dev" / "block" / f"{os.major(device_number)}:{os.minor(device_number)}"


def disk_folder(device_number: int, sysfs: Path = SYSFS) -> Path:
    """The folder of the whole disk that a device is, or that it is a partition of.

    Raises:
        OSError: there is none.
    """
    folder = device_folder(device_number, sysfs).resolve(strict=True)
    return folder.parent if (folder / "partition").exists() else folder


def discard_unit(device_number: int, sysfs: Path = SYSFS) -> DiscardUnit:
    """What a disk or partition discards as a whole."""
    try:
        queue = disk_folder(device_number, sysfs) / "queue"
        if int((queue / "discard_max_bytes").read_text()) == 0:
            return DiscardUnit(0)
        unit_bytes = int((queue / "discard_granularity").read_text())
        offset_bytes = int((device_folder(device_number, sysfs) / "discard_alignment").read_text())
    except (OSError, ValueError):
        return DiscardUnit(0)
    return DiscardUnit(max(0, unit_bytes), max(0, offset_bytes))
