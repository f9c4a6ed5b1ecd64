"""Mounts and swap areas from ``/proc``, and the mount points of the running system."""

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
"""Mount points of a running system; a disk below one of these is never a target."""

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
"""Directories in which live systems mount their own medium: live-boot, archiso, dracut, casper, NixOS."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """One line of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5))."""

    number: int
    """Device number; its major number is 0 for a filesystem without a device of its own (overlay, btrfs, tmpfs)."""
    point: str
    filesystem: str
    source: str
    """The source as it was named in the mount command."""
    layers: tuple[str, ...]
    """The directories of an overlay."""


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """Parse a mountinfo file, in the kernel's order: a later mount covers an earlier one at the same point."""
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
            if path:  # two colons in a row separate the data layers from the others
                yield path.replace("\\:", ":").replace("\\,", ",").replace("\\\\", "\\")


def _unescape(text: str) -> str:
    """Decode the octal numbers that the kernel writes for blanks and backslashes."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def parse_swaps(text: str) -> tuple[str, ...]:
    """Return the paths in a ``/proc/swaps`` file: partitions, disks and files."""
    return tuple(_unescape(line.split()[0]) for line in text.splitlines()[1:] if line.strip())


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """Return the mount that holds an absolute path: the deepest one, and the latest of those at the same point."""
    wanted = PurePosixPath(path)
    found: Mount | None = None
    for mount in mounts:
        if wanted.is_relative_to(mount.point) and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def is_system_point(point: str) -> bool:
    """Return whether a mount point belongs to the running system or to its live medium."""
    path = PurePosixPath(point)
    return point in SYSTEM_POINTS or any(path.is_relative_to(parent) for parent in LIVE_MEDIA_POINTS)


def device_number(path: str) -> int | None:
    """Return the number of the block device at ``path``; None if there is none."""
    with contextlib.suppress(OSError, ValueError):
        status = Path(path).stat()
        if stat.S_ISBLK(status.st_mode):
            return status.st_rdev
    return None
