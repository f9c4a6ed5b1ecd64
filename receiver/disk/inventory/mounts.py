"""What the kernel has mounted and swaps to, from ``/proc``: which block devices the running system stands on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_OVERLAY_LAYERS: Final = re.compile(r"(?:lowerdir\+?|datadir\+|upperdir|workdir)=((?:\\.|[^,\\])*)")
_UNESCAPED_COLON: Final = re.compile(r"(?<!\\):")

SYSTEM_POINTS: Final = (
    "/",
    "/boot",
    "/boot/efi",
    "/boot/firmware",
    "/efi",
    "/esp",
    "/usr",
    "/var",
    "/nix/store",
)
"""Where a running system keeps itself; a disk below one of these is never a target."""

LIVE_MEDIA_POINTS: Final = (
    "/run/live",
    "/lib/live/mount",
    "/run/archiso",
    "/run/initramfs/live",
    "/run/rootfsbase",
    "/cdrom",
    "/run/miso",
    "/sysroot",
    "/iso",
    "/mnt/livemedia",
)
"""Below these, live systems mount the medium that they run from: live-boot, archiso, dracut, casper, NixOS."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """One line of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5))."""

    number: int
    """Device number; of a filesystem without a device of its own (overlay, btrfs, tmpfs), the major one is 0."""
    point: str
    filesystem: str
    source: str
    """What was named when it was mounted."""
    layers: tuple[str, ...]
    """The directories of an overlay."""


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """The mounts of a mountinfo file, in the kernel's order: a later one covers an earlier one at the same place."""
    return tuple(_parse_lines(text))


def _parse_lines(text: str) -> Iterator[Mount]:
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, details = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(details) < 2:
            continue
        major, _, minor = fields[2].partition(":")
        layers: tuple[str, ...] = ()
        if details[0] == "overlay" and len(details) > 2:
            layers = tuple(_overlay_layers(_unescape(details[2])))
        yield Mount(
            os.makedev(int(major), int(minor)),
            _unescape(fields[4]),
            details[0],
            _unescape(details[1]),
            layers,
        )


def _overlay_layers(options: str) -> Iterator[str]:
    for match in _OVERLAY_LAYERS.finditer(options):
        for path in _UNESCAPED_COLON.split(match[1]):
            if path:  # two colons in a row divide the layers of data from the others
                yield path.replace("\\:", ":").replace("\\,", ",").replace("\\\\", "\\")


def _unescape(text: str) -> str:
    """The kernel writes blanks and backslashes as octal numbers."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def parse_swaps(text: str) -> tuple[str, ...]:
    """The paths of a ``/proc/swaps`` file: partitions, disks and files."""
    return tuple(_unescape(line.split()[0]) for line in text.splitlines()[1:] if line.strip())


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that an absolute path lies on: the longest that contains it, the last of equally long ones."""
    wanted = PurePosixPath(path)
    found: Mount | None = None
    for mount in mounts:
        if wanted.is_relative_to(mount.point) and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def is_system_point(point: str) -> bool:
    """Whether what is mounted there is the running system, or the medium that it runs from."""
    path = PurePosixPath(point)
    return point in SYSTEM_POINTS or any(path.is_relative_to(parent) for parent in LIVE_MEDIA_POINTS)


def device_number(path: str) -> int | None:
    """The number of the block device at ``path``, if that is one."""
    with contextlib.suppress(OSError, ValueError):
        status = Path(path).stat()
        if stat.S_ISBLK(status.st_mode):
            return status.st_rdev
    return None
