"""Eligibility of a disk as a target: one judgement for every command, with the reason of a refusal and its fix.

The judgement rests on sysfs. When a target is opened, the kernel itself decides once more (open(2), O_EXCL).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from protocol.errors import (
    TargetError,
    TargetIncompatibleError,
    TargetInUseError,
    TargetIsImageError,
    TargetIsSystemDiskError,
    TargetReadOnlyError,
    TargetTooSmallError,
)
from protocol.preflight.sectors import sector_needs, sector_problem
from protocol.shared.units import format_bytes
from receiver.disk.inventory.block_devices import BlockDevice, DeviceKind, DiskInventory
from receiver.disk.inventory.disk_contents import DiskContents, read_contents
from receiver.disk.inventory.holders import (
    DeviceUse,
    LoopProbe,
    devices_below,
    devices_of_file,
    loop_file,
    system_devices,
    uses_of,
)

if TYPE_CHECKING:
    from protocol.disk.partition_table import DiskLayout
    from protocol.image.manifest import Manifest

NOTHING_WRITTEN: Final = "nothing was written"
_USES_SHOWN_MAX: Final = 3
_CANDIDATES_SHOWN_MAX: Final = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """The reason for refusing a target, and the fix."""

    error_class: type[TargetError]
    reason: str
    fix: str

    def error(self) -> TargetError:
        """Return the error to raise."""
        return self.error_class(f"{self.reason}: {self.fix}; {NOTHING_WRITTEN}")


@dataclasses.dataclass(frozen=True, slots=True)
class ImageNeeds:
    """An image's requirements for its target; all empty until the image is known.

    Attributes:
        raw_bytes: size of the image.
        layout: layout of the imaged disk; None for older images.
        sector_bytes: logical sector size of the imaged disk, or None.
        path: the image file, if it is on this machine.
    """

    raw_bytes: int = 0
    layout: DiskLayout | None = None
    sector_bytes: int | None = None
    path: Path | None = None


def image_needs(manifest: Manifest, path: Path | None = None) -> ImageNeeds:
    """Return the requirements of the image of ``manifest``."""
    from protocol.disk.disk_layout import layout_of

    sector_bytes = manifest.metadata.get("logical_sector_bytes")
    return ImageNeeds(
        manifest.raw_bytes,
        layout_of(manifest.metadata),
        sector_bytes if isinstance(sector_bytes, int) else None,
        path,
    )


def judge(
    device: BlockDevice, inventory: DiskInventory, needs: ImageNeeds, *, probe: LoopProbe = loop_file
) -> Refusal | None:
    """Return the first reason why ``device`` can't be the target of an image; None if it can.

    See :func:`incompatibility` for the image's layout.

    Args:
        device: a disk or partition of ``inventory``.
        inventory: the current devices of this machine.
        needs: requirements of the image, as far as they are known.
        probe: returns the file of a loop device.
    """
    return (
        _refuse_image(device, needs, probe)
        or _refuse_system(device, inventory, probe)
        or _refuse_below_image(device, inventory, needs, probe)
        or refuse_uses(device.path, uses_of(device, inventory))
        or _refuse_read_only(device)
        or _refuse_size(device, needs)
    )


def refuse_boot_stick(disk: BlockDevice, contents: DiskContents) -> Refusal | None:
    """Refuse a boot stick of diskcast, which the live system may have come from; return None for any other disk.

    Lists and rules refuse it. Who names it by its path or serial number means it.
    """
    if not contents.is_boot_stick:
        return None
    return Refusal(
        TargetIsSystemDiskError,
        f"{disk.path} is a boot stick of diskcast",
        "choose another disk; to overwrite the stick, name it by its path",
    )


def refuse_if_boot_stick(disk: BlockDevice) -> Refusal | None:
    """Read a removable disk, and refuse it if it is a boot stick."""
    if not disk.removable:
        return None
    return refuse_boot_stick(disk, read_contents(disk.path, disk.size_bytes, disk.sector_bytes))


def with_candidates(
    error: TargetError, inventory: DiskInventory, raw_bytes: int, *, probe: LoopProbe = loop_file
) -> TargetError:
    """Return ``error`` extended by one line per disk: description and verdict."""
    probe = functools.cache(probe)
    lines: list[str] = []
    for disk in inventory.disks():
        refusal = judge(disk, inventory, ImageNeeds(raw_bytes), probe=probe) or refuse_if_boot_stick(disk)
        if is_shown(disk, refusal):
            lines.append(f"  {_summary(disk)}: {verdict_text(disk, refusal)}")
    if len(lines) > _CANDIDATES_SHOWN_MAX:
        lines = [*lines[:_CANDIDATES_SHOWN_MAX], "  … and more: see diskcast-agent disks"]
    listing = "\n".join(lines) or "  none"
    return type(error)(f"{error}. The disks of this machine:\n{listing}")


def is_shown(disk: BlockDevice, refusal: Refusal | None) -> bool:
    """Return whether people want to see a disk in a list of possible targets.

    Nobody images an optical drive, and live systems have many loop devices of their own.
    """
    return disk.kind is not DeviceKind.OPTICAL and (refusal is None or disk.kind is not DeviceKind.LOOP)


def verdict_text(disk: BlockDevice, refusal: Refusal | None) -> str:
    """Return ``usable`` or the reason for the refusal, without the path, which is shown beside it."""
    return "usable" if refusal is None else refusal.reason.removeprefix(f"{disk.path} ")


def _summary(disk: BlockDevice) -> str:
    facts = [str(disk.path), format_bytes(disk.size_bytes), disk.model]
    facts += [f"serial {disk.serial}" if disk.serial else "", "removable" if disk.removable else ""]
    return ", ".join(filter(None, facts))


def file_refusal(
    path: Path, status: os.stat_result, inventory: DiskInventory, *, probe: LoopProbe = loop_file
) -> Refusal | None:
    """Refuse a regular file that is the backing file of a loop device in use."""
    for device in inventory.disks():
        if device.kind is DeviceKind.LOOP and device.label and _is_loop_over(device, status, probe):
            uses = uses_of(device, inventory)
            if uses:
                return refuse_uses(path, uses)
    return None


def refuse_uses(path: Path, uses: Sequence[DeviceUse]) -> Refusal | None:
    """Refuse a device that has uses; return None if there are none."""
    if not uses:
        return None
    shown = [
        use.state if use.held == path else f"{use.held} is {use.state}" for use in uses[:_USES_SHOWN_MAX]
    ]
    if len(uses) > len(shown):
        shown.append(f"and {len(uses) - len(shown)} more")
    fixes = list(dict.fromkeys(use.fix for use in uses[:_USES_SHOWN_MAX]))
    return Refusal(
        TargetInUseError,
        f"{path} is in use: {', '.join(shown)}",
        f"release it first ({'; '.join(fixes)}) or choose another target",
    )


def incompatibility(
    needs: ImageNeeds, path: Path, sector_bytes: int, *, is_partition: bool
) -> Refusal | None:
    """Refuse a device on which the image couldn't boot or its partitions wouldn't be found.

    Args:
        needs: requirements of the image.
        path: the device.
        sector_bytes: logical sector size of the device.
        is_partition: the device is a partition rather than a whole disk.
    """
    from protocol.disk.partition_table import TableKind

    layout = needs.layout
    has_table = layout is not None and layout.table is not TableKind.NONE
    if has_table and is_partition:
        return Refusal(
            TargetIncompatibleError,
            f"{path} is a partition, and the image is of a whole disk with a partition table, which nothing would find "
            "inside a partition",
            "name the whole disk, or pack the partition alone and restore that",
        )
    problem = sector_problem(sector_needs(layout, needs.sector_bytes, needs.raw_bytes), sector_bytes)
    if problem is None:
        return None
    return Refusal(TargetIncompatibleError, f"{path} has {problem.reason}", problem.fix)


def _refuse_image(device: BlockDevice, needs: ImageNeeds, probe: LoopProbe) -> Refusal | None:
    status = _image_status(needs)
    if status is None:
        return None
    if stat.S_ISBLK(status.st_mode) and status.st_rdev == device.number:
        return Refusal(
            TargetIsImageError,
            f"{device.path} is the image file {needs.path} itself",
            "choose another target",
        )
    if device.kind is DeviceKind.LOOP and device.label and _is_loop_over(device, status, probe):
        return Refusal(
            TargetIsImageError,
            f"{device.path} is a loop device over the image file {needs.path} itself",
            f"choose another target, or losetup --detach {device.path}",
        )
    return None


def _is_loop_over(device: BlockDevice, status: os.stat_result, probe: LoopProbe) -> bool:
    file = probe(device)
    if file is not None and (file.filesystem_number, file.inode) == (status.st_dev, status.st_ino):
        return True
    try:
        return os.path.samestat(Path(device.label).stat(), status)
    except OSError:
        return False


def _refuse_below_image(
    device: BlockDevice, inventory: DiskInventory, needs: ImageNeeds, probe: LoopProbe
) -> Refusal | None:
    status = _image_status(needs)
    if status is None or needs.path is None:
        return None
    path = needs.path.resolve()
    if stat.S_ISBLK(status.st_mode):
        image_device = inventory.devices.get(status.st_rdev)
        below = devices_below(image_device, inventory, probe) if image_device else frozenset()
    else:
        below = devices_of_file(path, inventory, filesystem_number=status.st_dev, probe=probe)
    if device.number not in below:
        return None
    return Refusal(
        TargetIsImageError,
        f"{device.path} holds the image file {needs.path}",
        "choose another target, or copy the image to another disk first",
    )


def _image_status(needs: ImageNeeds) -> os.stat_result | None:
    if needs.path is None:
        return None
    try:
        return needs.path.stat()
    except OSError:
        return None


def _refuse_system(device: BlockDevice, inventory: DiskInventory, probe: LoopProbe) -> Refusal | None:
    point = system_devices(inventory, probe).get(device.number)
    if point is None:
        return None
    return Refusal(
        TargetIsSystemDiskError,
        f"{device.path} is the disk that this machine runs from ({point} is on it)",
        "choose another disk, or start the machine from a live system to image this one",
    )


def _refuse_read_only(device: BlockDevice) -> Refusal | None:
    if not device.read_only:
        return None
    return Refusal(
        TargetReadOnlyError,
        f"{device.path} is read-only",
        f"check its write protection switch and blockdev --getro {device.path}; if only software protects it, run "
        f"blockdev --setrw {device.path}",
    )


def _refuse_size(device: BlockDevice, needs: ImageNeeds) -> Refusal | None:
    if device.size_bytes == 0:
        return Refusal(TargetError, f"{device.path} has no medium", "insert one or choose another target")
    return refuse_size(device.path, device.size_bytes, needs.raw_bytes)


def refuse_size(path: Path, size_bytes: int, raw_bytes: int) -> Refusal | None:
    """Refuse a target that is smaller than the image; return None if it isn't."""
    if size_bytes >= raw_bytes:
        return None
    return Refusal(
        TargetTooSmallError,
        f"{path} has {format_bytes(size_bytes)} ({size_bytes} bytes), the image {format_bytes(raw_bytes)} "
        f"({raw_bytes} bytes)",
        "choose a larger one",
    )
