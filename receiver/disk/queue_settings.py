"""The kernel's settings for a target's disk while it is written, as they were again afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from receiver.disk.inventory import sysfs as block_sysfs
from receiver.disk.target import Target

SCHEDULER: Final = {"0": "none", "1": "mq-deadline"}
"""By ``queue/rotational``. Our writes are large and in order: there is nothing to sort on a disk without heads; on one
with heads, what is read back mustn't starve behind the writes, nor be mixed with them request by request."""

CACHE_SHARE_PERCENT: Final = 10
"""Most of the machine's dirty memory that a slow disk may have waiting for it, while it is written through the page
cache: everything else on the machine would have to wait for that disk, too."""


@dataclasses.dataclass(slots=True)
class QueueTuning:
    """What :func:`tuned_queue` did; for the log and for tests.

    Attributes:
        changed: files in /sys that were set, with what they said before.
        failures: what couldn't be set or set back, and why.
    """

    changed: dict[Path, str] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def tuned_queue(
    target: Target, *, page_cache: bool = False, sysfs: Path = block_sysfs.SYSFS
) -> Iterator[QueueTuning]:
    """Set what suits writing an image for the ``with`` block, on the whole disk when the target is a partition.

    The scheduler as in :data:`SCHEDULER`, where the kernel has it. What can't be set stays as it is, silently: it is
    about speed alone. Everything is set back at the end, also after an error or a signal that ends the block in an
    orderly way; after SIGKILL or a power cut the scheduler and ratio stay until the next boot or until somebody sets
    them, which harms nothing. A setting that somebody else changed meanwhile is left to them.

    Args:
        target: nothing is done for a file.
        page_cache: the target isn't written directly: bound its share of dirty memory, too.
        sysfs: where /sys is.
    """
    tuning = QueueTuning()
    with contextlib.ExitStack() as restore:
        if target.is_device:
            _tune(os.fstat(target.fd).st_rdev, page_cache, sysfs, tuning, restore)
        yield tuning


def _tune(
    device_number: int, page_cache: bool, sysfs: Path, tuning: QueueTuning, restore: contextlib.ExitStack
) -> None:
    try:
        disk = block_sysfs.disk_folder(device_number, sysfs)
        rotational = (disk / "queue" / "rotational").read_text().strip()
        before, available = _schedulers((disk / "queue" / "scheduler").read_text())
    except OSError as error:
        tuning.failures.append(str(error))
        return
    wanted = SCHEDULER.get(rotational)
    if before and wanted in available and wanted != before:
        # Run last: choosing a scheduler gives it and the queue their defaults, whatever an administrator had set.
        restore.callback(_set_back_all, _read_all(disk / "queue"), tuning)
        _set(disk / "queue" / "scheduler", before, wanted, tuning, restore)
    if page_cache:
        ratio = disk / "bdi" / "max_ratio"
        try:
            ratio_before = int(ratio.read_text())
        except (OSError, ValueError) as error:
            tuning.failures.append(str(error))
            return
        if ratio_before > CACHE_SHARE_PERCENT:
            _set(ratio, str(ratio_before), str(CACHE_SHARE_PERCENT), tuning, restore)


def _schedulers(text: str) -> tuple[str, list[str]]:
    """The scheduler in use and those there are, of ``none [mq-deadline] kyber``; "" where none can be chosen."""
    names = text.split()
    chosen = next((name.strip("[]") for name in names if name.startswith("[")), "")
    return chosen, [name.strip("[]") for name in names]


def _set(path: Path, before: str, value: str, tuning: QueueTuning, restore: contextlib.ExitStack) -> None:
    # Prepared first: an interrupt between the two would otherwise leave it set.
    restore.callback(_set_back, path, before, value, tuning)
    if _write(path, value, tuning):
        tuning.changed[path] = before


def _set_back(path: Path, before: str, value: str, tuning: QueueTuning) -> None:
    try:
        now, _ = _schedulers(path.read_text()) if path.name == "scheduler" else (path.read_text().strip(), [])
    except OSError as error:  # unplugged
        tuning.failures.append(str(error))
        return
    if now == value:
        _write(path, before, tuning)


def _read_all(queue: Path) -> dict[Path, str]:
    """What depends on the scheduler."""
    values = {}
    for path in (queue / "nr_requests", queue / "wbt_lat_usec", *sorted(queue.glob("iosched/*"))):
        with contextlib.suppress(OSError):
            values[path] = path.read_text()
    return values


def _set_back_all(values: dict[Path, str], tuning: QueueTuning) -> None:
    for path, value in values.items():
        with contextlib.suppress(OSError):  # the disk is gone, or another scheduler was chosen meanwhile
            if path.read_text() != value:
                _write(path, value, tuning)


def _write(path: Path, value: str, tuning: QueueTuning) -> bool:
    try:
        path.write_text(value)
    except OSError as error:
        tuning.failures.append(f"{path}: {error.strerror}")
        return False
    return True
