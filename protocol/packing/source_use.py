"""Search for mounts and other users of a source: a disk that is mounted writable changes while it is read."""

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
"""Disk, partition, RAID, encryption, volume: twice the usual depth."""

_ITSELF: Final = -1
"""Stands for the source file itself, in place of a device number."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceUse:
    """Mounts and other users of a source, including its partitions and the devices on top of it."""

    writable: tuple[str, ...]
    """Mount points through which the source may change."""
    held_elsewhere: bool
    """True if another container or program has opened the device exclusively."""

    @property
    def may_change(self) -> bool:
        """True if the source may change while it is read."""
        return bool(self.writable) or self.held_elsewhere


def find_source_use(path: Path, status: os.stat_result) -> SourceUse:
    """Return the users of the source at ``path``, whose open file has ``status``.

    Considers the mounts of the device, its partitions, LVM, RAID and encryption on top of them, and loop devices over
    the device or file.
    """
    devices: set[int] = {_ITSELF}
    if stat.S_ISBLK(status.st_mode):
        _add_device(status.st_rdev, devices, _HOLDERS_DEPTH_MAX)
    for loop in _loops_over(status):
        _add_device(loop, devices, _HOLDERS_DEPTH_MAX)
    mounts = [(point, writable) for device, point, writable in _mounts(status) if device in devices]
    held_here = bool(mounts) or _has_holders(devices) or bool(devices & _swaps())
    held_elsewhere = stat.S_ISBLK(status.st_mode) and not held_here and _is_held(path)
    return SourceUse(tuple(sorted({point for point, writable in mounts if writable})), held_elsewhere)


def require_unused(path: Path, use: SourceUse) -> None:
    """Refuse a source that may change while it is read.

    Raises:
        SourceInUseError: the source may change.
    """
    alternative = "or pack it anyway with --allow-mounted (files may be inconsistent)"
    if use.writable:
        points = ", ".join(use.writable)
        raise SourceInUseError(
            f"{path} is mounted writable at {points}: its content changes while it is read; unmount it, "
            f"remount it read-only (mount -o remount,ro), {alternative}"
        )
    if use.held_elsewhere:
        raise SourceInUseError(f"{path} is in use by another container or program: stop it, {alternative}")


def _add_device(device: int, devices: set[int], depth: int) -> None:
    """Add a device, its partitions and the devices on top of them."""
    if device in devices or not depth:
        return
    devices.add(device)
    folder = _SYS_BLOCK / f"{os.major(device)}:{os.minor(device)}"
    try:
        children = [*folder.glob("*/partition"), *folder.glob("holders/*")]
    except OSError:  # the device was removed
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
            below = os.stat(backing.read_text().rstrip("\n"))  # noqa: PTH116  symmetrical to the caller
            major, minor = (backing.parent.parent / "dev").read_text().split(":")
        except (OSError, ValueError):  # detached, or its file was deleted
            continue
        same = (
            below.st_rdev == status.st_rdev
            if stat.S_ISBLK(status.st_mode) and stat.S_ISBLK(below.st_mode)
            else os.path.samestat(below, status)
        )
        if same:
            yield os.makedev(int(major), int(minor))


def _mounts(file_status: os.stat_result) -> Iterator[tuple[int, str, bool]]:
    """Yield each mount's device, mount point and whether its filesystem, not only this mount of it, is writable.

    The device is :data:`_ITSELF` where the file of ``file_status`` itself is mounted, as FUSE programs do.
    """
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        mount, _, filesystem = line.partition(" - ")
        mount_fields, filesystem_fields = mount.split(" "), filesystem.split(" ")
        if len(mount_fields) < 5 or len(filesystem_fields) < 3:
            continue
        major, _, minor = mount_fields[2].partition(":")
        device = os.makedev(int(major), int(minor))
        source = _unescaped(filesystem_fields[1])
        if (
            source.startswith("/") and major == "0"
        ):  # btrfs and others mount under device numbers of their own
            with contextlib.suppress(OSError):
                below = os.stat(source)  # noqa: PTH116
                device = _ITSELF if os.path.samestat(below, file_status) else below.st_rdev or device
        yield device, _unescaped(mount_fields[4]), "rw" in filesystem_fields[2].split(",")


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
    """Return whether the device is opened exclusively, as every mount does, in any mount namespace."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False
