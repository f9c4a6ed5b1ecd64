"""Kernel queue settings for the target's disk while it is written, restored afterwards."""

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
"""I/O schedulers by ``queue/rotational``. Our writes are large and in order, so a disk without heads needs no sorting.
On a disk with heads, read-back mustn't starve behind the writes, nor alternate with them request by request."""

CACHE_SHARE_PERCENT: Final = 10
"""Largest share of the machine's dirty memory that a slow disk may hold while it is written through the page cache:
otherwise everything else on the machine would wait for that disk."""


@dataclasses.dataclass(slots=True)
class QueueTuning:
    """The changes of :func:`tuned_queue`, for the log and for tests.

    Attributes:
        changed: files in /sys that were changed, with their previous values.
        failures: settings that couldn't be changed or restored, with the reasons.
    """

    changed: dict[Path, str] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def tuned_queue(
    target: Target, *, page_cache: bool = False, sysfs: Path = block_sysfs.SYSFS
) -> Iterator[QueueTuning]:
    """Tune the whole disk of the target for writing an image during the ``with`` block.

    Sets the scheduler of :data:`SCHEDULER` if the kernel has it. A setting that can't be changed is skipped silently:
    only speed depends on it. All settings are restored at the end of the block, also after an error or a handled
    signal. After SIGKILL they stay until the next boot, which is harmless. A setting that another program changed in
    between is left alone.

    Args:
        target: the target; a file needs no tuning.
        page_cache: the target is written through the page cache: limit its share of dirty memory as well.
        sysfs: the directory /sys.
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
        # Runs last: choosing a scheduler resets its and the queue's settings to defaults.
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
    """Parse ``none [mq-deadline] kyber`` into the scheduler in use ("" if there is no choice) and the available."""
    names = text.split()
    chosen = next((name.strip("[]") for name in names if name.startswith("[")), "")
    return chosen, [name.strip("[]") for name in names]


def _set(path: Path, before: str, value: str, tuning: QueueTuning, restore: contextlib.ExitStack) -> None:
    # Registered first: an interrupt between the two would otherwise leave the setting changed.
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
    """Read the settings that depend on the scheduler."""
    values = {}
    for path in (queue / "nr_requests", queue / "wbt_lat_usec", *sorted(queue.glob("iosched/*"))):
        with contextlib.suppress(OSError):
            values[path] = path.read_text()
    return values


def _set_back_all(values: dict[Path, str], tuning: QueueTuning) -> None:
    for path, value in values.items():
        with contextlib.suppress(OSError):  # the disk was unplugged, or another program chose a scheduler
            if path.read_text() != value:
                _write(path, value, tuning)


def _write(path: Path, value: str, tuning: QueueTuning) -> bool:
    try:
        path.write_text(value)
    except OSError as error:
        tuning.failures.append(f"{path}: {error.strerror}")
        return False
    return True
