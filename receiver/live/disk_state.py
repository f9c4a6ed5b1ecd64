"""The record of what this boot has done to a disk, in a file that process 1 reads too: the program may crash."""

from __future__ import annotations

import contextlib
import enum
from pathlib import Path
from typing import Final

DISK_STATE_FILE: Final = Path("/run/diskcast/disk-state")
"""Read by files/root/usr/lib/diskcast/ending.sh; missing while no disk was written."""


class DiskState(enum.StrEnum):
    """The state of this machine's disks after this boot, as the consoles say it."""

    UNTOUCHED = "nothing was written"
    INCOMPLETE = "a disk may be incomplete"
    """A cast was joined, or a technician confirmed a disk."""
    COMPLETE = "the image is on the disk"


def note_disk_state(state: DiskState) -> None:
    """Keep the state for the rest of this boot."""
    with contextlib.suppress(OSError):  # outside a live system there is no such folder
        DISK_STATE_FILE.write_text(f"{state}\n")


def read_disk_state() -> DiskState:
    """Return the state."""
    try:
        return DiskState(DISK_STATE_FILE.read_text().strip())
    except (OSError, ValueError):
        return DiskState.UNTOUCHED
