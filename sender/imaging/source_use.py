"""Who else uses a source: what is mounted writable changes while it is read."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.errors import SourceInUseError

_SYS_BLOCK: Final = Path("/sys/dev/block")
_LOOPS: Final = Path("/sys/block")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_SWAPS: Final = Path("/proc/swaps")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_HOLDERS_DEPTH_MAX: Final = 8
"""Disk, partition, RAID, encryption, volume: twice what anybody stacks."""

_ITSELF: Final = -1
"""In place of a device number."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceUse:
    """What is mounted of a source, or of what lies on it."""

    writable: tuple[str, ...]
    """Mount points through which it may change."""
    unseen: bool
    """Something holds it that can't be seen from here."""

    @property
    def may_change(self) -> bool:
        """Whether its content may change while it is read."""
        return bool(self.writable) or self.unseen


def find_source_use(path: Path, status: os.stat_result) -> SourceUse:
    """How the source at ``path``, whose open file has ``status``, is used.

    Looked for are mounts of the device, its partitions, what LVM, RAID or encryption make of them, and loop devices
    over the device or file.
    """
    devices: set[int] = {_ITSELF}
    if stat.S_ISBLK(status.st_mode):
        _add_device(status.st_rdev, devices, _HOLDERS_DEPTH_MAX)
    for loop in _loops_over(status):
        _add_device(loop, devices, _HOLDERS_DEPTH_MAX)
    mounts = [(point, writable) for device, point, writable in _mounts(status) if device in devices]
    seen = bool(mounts) or _has_holders(devices) or bool(devices & _swaps())
    unseen = stat.S_ISBLK(status.st_mode) and not seen and _is_held(path)
    return SourceUse(tuple(sorted({point for point, writable in mounts if writable})), unseen)


def require_unused(path: Path, use: SourceUse) -> None:
    """Refuse a source that may change.

    Raises:
        SourceInUseError: it may.
    """
    mend = "or pack it as it is with --allow-mounted (files may be torn)"
    if use.writable:
        points = ", ".join(use.writable)
        raise SourceInUseError(
            f"{path} is mounted writable at {points}: its content changes while it is read; unmount it or "
            f"`mount -o remount,ro`, {mend}"
        )
    if use.unseen:
        raise SourceInUseError(
            f"{path} is held by something that can't be seen from here, another container or program: release it, "
            f"{mend}"
        )


def _add_device(device: int, devices: set[int], depth: int) -> None:
    """Add a device, its partitions, and what is made of them."""
    if device in devices or not depth:
        return
    devices.add(device)
    folder = _SYS_BLOCK / f"{os.major(device)}:{os.minor(device)}"
    try:
        children = [*folder.glob("*/partition"), *folder.glob("holders/*")]
    except OSError:  # gone meanwhile
        return
    for child in children:
        number = child.parent / "dev" if child.name == "partition" else child / "dev"
        try:
            major, minor = number.read_text().split(":")
        except (OSError, ValueError):
            continue
        _add_device(os.makedev(int(major), int(minor)), devices, depth - 1)


def _has_holders(devices: set[int]) -> bool:
    return any(
        any((_SYS_BLOCK / f"{os.major(device)}:{os.minor(device)}" / "holders").glob("*"))
        for device in devices - {_ITSELF}
    )


def _loops_over(status: os.stat_result) -> Iterator[int]:
    for backing in _LOOPS.glob("loop*/loop/backing_file"):
        try:
            below = os.stat(backing.read_text().rstrip("\n"))  # noqa: PTH116  symmetrical to the caller's
            major, minor = (backing.parent.parent / "dev").read_text().split(":")
        except (OSError, ValueError):  # detached meanwhile, or its file was deleted
            continue
        same = (
            below.st_rdev == status.st_rdev
            if stat.S_ISBLK(status.st_mode) and stat.S_ISBLK(below.st_mode)
            else os.path.samestat(below, status)
        )
        if same:
            yield os.makedev(int(major), int(minor))


def _mounts(file_status: os.stat_result) -> Iterator[tuple[int, str, bool]]:
    """Device, mount point and whether the filesystem itself, not just this view of it, is writable.

    The device is :data:`_ITSELF` where the file of ``file_status`` itself is mounted, as programs do by FUSE.
    """
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        place, _, filesystem = line.partition(" - ")
        words, source_words = place.split(" "), filesystem.split(" ")
        if len(words) < 5 or len(source_words) < 3:
            continue
        major, _, minor = words[2].partition(":")
        device = os.makedev(int(major), int(minor))
        source = _unescaped(source_words[1])
        if source.startswith("/") and major == "0":  # btrfs and others mount under numbers of their own
            with contextlib.suppress(OSError):
                below = os.stat(source)  # noqa: PTH116
                device = _ITSELF if os.path.samestat(below, file_status) else below.st_rdev or device
        yield device, _unescaped(words[4]), "rw" in source_words[2].split(",")


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)


def _swaps() -> set[int]:
    devices: set[int] = set()
    try:
        lines = _SWAPS.read_text().splitlines()[1:]
    except OSError:  # a kernel without swap
        return devices
    for line in lines:
        try:
            devices.add(os.stat(_unescaped(line.split()[0])).st_rdev)  # noqa: PTH116
        except (OSError, IndexError):
            continue
    return devices


def _is_held(path: Path) -> bool:
    """Whether somebody has the device for themselves, as every mount does, in whatever namespace."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False
