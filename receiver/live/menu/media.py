"""Image files on media at this machine: a second partition of the boot stick, another stick, or a directory.

Media are mounted read-only, without replaying a journal, so nothing on them changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from protocol.disk.partition_table import TableKind
from protocol.program.confinement import KERNEL_TOOL
from protocol.shared.units import format_bytes
from receiver.disk.fit.programs import StepError, run_program
from receiver.disk.inventory.block_devices import BlockDevice, DeviceKind, DiskInventory
from receiver.disk.inventory.disk_contents import read_contents
from receiver.disk.inventory.holders import uses_of

MOUNT_FOLDER: Final = Path("/run/diskcast/media")
IMAGE_FOLDERS: Final = ("", "diskcast", "images")
"""Folders of a medium that are searched."""

IMAGE_SUFFIX: Final = ".dci"
FILES_MAX: Final = 100
MEDIA_MAX: Final = 16
MOUNT_TIME_LIMIT_S: Final = 60.0

_MOUNT_OPTIONS: Final = {
    "vfat": "",
    "exfat": "",
    "ntfs": "",
    "ext4": "noload",
    "xfs": "norecovery",
    "btrfs": "rescue=nologreplay",
}
"""Filesystems of media, with the option that keeps the kernel from replaying a journal even of a read-only mount."""

_KERNEL_DRIVERS: Final = {"ntfs": "ntfs3"}


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFileEntry:
    """An image file that was found."""

    path: Path
    size_bytes: int
    place: str
    """The medium, for people."""


def media_of(inventory: DiskInventory) -> list[tuple[BlockDevice, str]]:
    """Return the removable filesystems of this machine that aren't in use, each with its type; reads them."""
    found: list[tuple[BlockDevice, str]] = []
    for disk in inventory.disks():
        if not (disk.removable or disk.kind is DeviceKind.OPTICAL) or uses_of(disk, inventory):
            continue
        layout = read_contents(disk.path, disk.size_bytes, disk.sector_bytes).layout
        if layout is None:
            continue
        if layout.table is TableKind.NONE:
            found.append((disk, layout.filesystem))
            continue
        by_number = {part.number: part.filesystem for part in layout.partitions}
        found += [
            (part, by_number.get(part.partition_number or 0, "")) for part in inventory.partitions_of(disk)
        ]
    return [(device, kind) for device, kind in found if kind in _MOUNT_OPTIONS][:MEDIA_MAX]


def mount_argv(device: BlockDevice, filesystem: str, point: Path) -> list[str | Path]:
    """Return the command that mounts a medium so that nothing on it changes."""
    options = ",".join(filter(None, ("ro,nosuid,nodev,noexec", _MOUNT_OPTIONS[filesystem])))
    return ["mount", "-t", _KERNEL_DRIVERS.get(filesystem, filesystem), "-o", options, device.path, point]


@contextlib.contextmanager
def mounted_media(
    inventory: DiskInventory, folder: Path = MOUNT_FOLDER
) -> Iterator[tuple[list[tuple[Path, str]], list[str]]]:
    """Mount all media while the context lasts.

    Yields:
        The mount points with the media's descriptions, and sentences about media that can't be mounted.
    """
    points: list[tuple[Path, str]] = []
    problems: list[str] = []
    try:
        for device, filesystem in media_of(inventory):
            point = folder / device.name
            text = f"{device.path}, {filesystem}, {format_bytes(device.size_bytes)}"
            try:
                point.mkdir(parents=True, exist_ok=True)
                run_program(
                    mount_argv(device, filesystem, point),
                    confinement=KERNEL_TOOL,
                    time_limit_s=MOUNT_TIME_LIMIT_S,
                )
            except (OSError, StepError) as error:
                problems.append(f"{text} can't be read: {error}")
                continue
            points.append((point, text))
        yield points, problems
    finally:
        for point, _ in points:
            with contextlib.suppress(StepError, OSError):
                run_program(["umount", point], confinement=KERNEL_TOOL, time_limit_s=MOUNT_TIME_LIMIT_S)
                point.rmdir()


def image_files(places: Iterable[tuple[Path, str]]) -> list[ImageFileEntry]:
    """Return the image files in the usual folders of these places, by place and name."""
    found: list[ImageFileEntry] = []
    for root, text in places:
        for folder in IMAGE_FOLDERS:
            paths: list[Path] = []
            with contextlib.suppress(OSError):
                paths = sorted((root / folder).iterdir())
            for path in paths:
                with contextlib.suppress(OSError):
                    if path.suffix.casefold() == IMAGE_SUFFIX and path.is_file():
                        found.append(ImageFileEntry(path, path.stat().st_size, text))
                if len(found) == FILES_MAX:
                    return found
    return found
