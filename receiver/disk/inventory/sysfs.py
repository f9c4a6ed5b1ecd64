"""Block device attributes in /sys (Documentation/ABI/stable/sysfs-block)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Final

SYSFS: Final = Path("/sys")


@dataclasses.dataclass(frozen=True, slots=True)
class DiscardUnit:
    """The discard granularity of a device: boundaries at ``offset_bytes + n * unit_bytes``.

    ``unit_bytes`` is 0 for a device that doesn't discard.
    """

    unit_bytes: int
    offset_bytes: int = 0


def device_folder(device_number: int, sysfs: Path = SYSFS) -> Path:
    """Return the sysfs folder of a disk or partition (``st_rdev`` of its node)."""
    return sysfs / "dev" / "block" / f"{os.major(device_number)}:{os.minor(device_number)}"


def disk_folder(device_number: int, sysfs: Path = SYSFS) -> Path:
    """Return the sysfs folder of the whole disk that a device is or belongs to.

    Raises:
        OSError: no such device.
    """
    folder = device_folder(device_number, sysfs).resolve(strict=True)
    return folder.parent if (folder / "partition").exists() else folder


def discard_unit(device_number: int, sysfs: Path = SYSFS) -> DiscardUnit:
    """Return the discard granularity of a disk or partition."""
    try:
        queue = disk_folder(device_number, sysfs) / "queue"
        if int((queue / "discard_max_bytes").read_text()) == 0:
            return DiscardUnit(0)
        unit_bytes = int((queue / "discard_granularity").read_text())
        offset_bytes = int((device_folder(device_number, sysfs) / "discard_alignment").read_text())
    except (OSError, ValueError):
        return DiscardUnit(0)
    return DiscardUnit(max(0, unit_bytes), max(0, offset_bytes))
