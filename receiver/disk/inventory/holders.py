"""Holders of a block device, and the devices below a device, file or mount.

The kernel alone decides whether a device is free (open(2), O_EXCL). This module names the holders, for the text of a
refusal, and the command that releases each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shlex
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from receiver.disk.inventory.block_devices import BlockDevice, DeviceKind, DiskInventory, SystemPaths
from receiver.disk.inventory.mounts import Mount, is_system_point, mount_of, parse_mounts

_LOOP_GET_STATUS64: Final = 0x4C05  # linux/loop.h
_LOOP_INFO_BYTES: Final = 232
_DEPTH_MAX: Final = 16
"""Levels of stacked devices; real stacks are far lower."""


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceUse:
    """A use that keeps a device from being written."""

    held: Path
    """The device in use: the device itself, one of its partitions, or its whole disk."""
    state: str
    """State of the device, such as ``mounted at /mnt``."""
    fix: str
    """Command that releases it."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoopFile:
    """The file behind a loop device as the kernel knows it, even if no path leads to it any more."""

    filesystem_number: int
    inode: int


LoopProbe = Callable[[BlockDevice], LoopFile | None]


def loop_file(device: BlockDevice) -> LoopFile | None:
    """Return a loop device's file; None if the device can't be queried (needs root)."""
    with contextlib.suppress(OSError):
        fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO_BYTES))
        finally:
            os.close(fd)
        number, inode = struct.unpack_from("=QQ", info)
        return LoopFile(number, inode)
    return None


def uses_of(device: BlockDevice, inventory: DiskInventory) -> list[DeviceUse]:
    """Return every use of ``device``, of its partitions, and of the disk that it is a partition of."""
    uses = list(_direct_uses(device, inventory))
    for partition in inventory.partitions_of(device):
        uses += _direct_uses(partition, inventory)
    if device.partition_number is not None:
        uses += _direct_uses(inventory.devices[device.disk_number], inventory)
    return list(dict.fromkeys(uses))


def mount_points(device: BlockDevice, inventory: DiskInventory) -> list[str]:
    """Return the mount points of ``device`` itself, without those of devices built on it."""
    return [mount.point for mount in inventory.mounts if device.number in _mounted_numbers(mount, inventory)]


def is_swap(device: BlockDevice, inventory: DiskInventory) -> bool:
    """Return whether the kernel swaps to ``device`` itself."""
    found = (inventory.by_path(path) for path in inventory.swaps)
    return any(swap is not None and swap.number == device.number for swap in found)


def system_devices(inventory: DiskInventory, probe: LoopProbe = loop_file) -> dict[int, str]:
    """Return every device that the running system needs, by number, with a mount point that proves it.

    The search follows partitions, device-mapper, RAID, loop devices and overlay layers, which live systems stack.
    """
    found: dict[int, str] = {}
    for mount in inventory.mounts:
        if is_system_point(mount.point):
            for number in _devices_of_mount(mount, inventory, probe, 0):
                found.setdefault(number, mount.point)
    return found


def devices_below(
    device: BlockDevice, inventory: DiskInventory, probe: LoopProbe = loop_file
) -> frozenset[int]:
    """Return ``device`` and every device below it: its disk, RAID members, the disk of a loop device's file."""
    return frozenset(_numbers_below(device.number, inventory, probe, 0))


def devices_of_file(
    path: Path, inventory: DiskInventory, *, filesystem_number: int = 0, probe: LoopProbe = loop_file
) -> frozenset[int]:
    """Return every device below the filesystem that holds a file.

    Args:
        path: absolute path of the file.
        inventory: the devices of this machine.
        filesystem_number: the file's ``st_dev``, which is right even if ``path`` is of another mount namespace.
        probe: returns the file of a loop device.
    """
    return frozenset(_devices_of_path(str(path), filesystem_number, inventory, probe, 0))


def find_other_holders(
    device: BlockDevice, inventory: DiskInventory, system_paths: SystemPaths
) -> list[DeviceUse]:
    """Find other holders of a device that the kernel calls busy: programs, and mounts in other namespaces.

    Searches every process, so it is only used for the text of a refusal.
    """
    family = {device.number, device.disk_number}
    family |= {partition.number for partition in inventory.partitions_of(device)}
    paths = {str(inventory.devices[number].path) for number in family if number in inventory.devices}
    uses: list[DeviceUse] = []
    seen_namespaces: set[str] = {_link(system_paths.proc / "self/ns/mnt")}
    for folder in _processes(system_paths.proc):
        process_id = folder.name
        command = _text(folder / "comm").strip()
        if int(process_id) != os.getpid() and any(target in paths for target in _open_files(folder)):
            state = f"open in process {process_id} ({command})"
            uses.append(DeviceUse(device.path, state, f"stop process {process_id}"))
        namespace = _link(folder / "ns/mnt")
        if namespace not in seen_namespaces:
            seen_namespaces.add(namespace)
            for mount in parse_mounts(_text(folder / "mountinfo")):
                if mount.number in family:
                    state = (
                        f"mounted at {mount.point} in the mount namespace of process {process_id} ({command})"
                    )
                    fix = f"nsenter --mount --target {process_id} umount {shlex.quote(mount.point)}"
                    uses.append(DeviceUse(inventory.devices[mount.number].path, state, fix))
    return list(dict.fromkeys(uses))


def _direct_uses(device: BlockDevice, inventory: DiskInventory) -> Iterator[DeviceUse]:
    for point in mount_points(device, inventory):
        yield DeviceUse(device.path, f"mounted at {point}", f"umount {shlex.quote(point)}")
    if is_swap(device, inventory):
        yield DeviceUse(device.path, "used as swap", f"swapoff {device.path}")
    for name in device.holders:
        yield _use_by_holder(device, name, inventory)
    for other in inventory.devices.values():
        # The kernel doesn't claim the device below a loop device: O_EXCL wouldn't notice.
        if other.kind is DeviceKind.LOOP and _names(other.label, device, inventory):
            where = _where_mounted(other, inventory)
            state = f"used by the loop device {other.path}{where}"
            yield DeviceUse(device.path, state, f"losetup --detach {other.path}")


def _use_by_holder(device: BlockDevice, name: str, inventory: DiskInventory) -> DeviceUse:
    holder = inventory.by_name(name)
    if holder is None:
        return DeviceUse(device.path, f"part of {name}", f"release {name}")
    where = _where_mounted(holder, inventory)
    if holder.kind is DeviceKind.RAID:
        return DeviceUse(device.path, f"part of the RAID {holder.path}{where}", f"mdadm --stop {holder.path}")
    if holder.kind is DeviceKind.MAPPED:
        kind, fix = _mapper_text(holder)
        return DeviceUse(device.path, f"part of {kind} {holder.label} ({holder.path}){where}", fix)
    return DeviceUse(device.path, f"part of {holder.path}{where}", f"release {holder.path}")


def _mapper_text(holder: BlockDevice) -> tuple[str, str]:
    kind, _, _ = holder.mapper_uuid.partition("-")
    if kind == "LVM":
        # Device-mapper doubles the dashes inside names: "my--group-root" is the volume root of my-group.
        group = holder.label.replace("--", "\0").partition("-")[0].replace("\0", "-")
        return "the LVM volume", f"vgchange --activate n {group}"
    if kind == "CRYPT":
        return "the encrypted device", f"cryptsetup close {holder.label}"
    if kind == "mpath":
        return "the multipath device", f"name that one instead: --target /dev/mapper/{holder.label}"
    return "the device-mapper device", f"dmsetup remove {holder.label}"


def _where_mounted(device: BlockDevice, inventory: DiskInventory) -> str:
    """Return ``, mounted at /`` for the device or a device built on it; empty if none is mounted."""
    for each in _devices_above(device, inventory, 0):
        points = mount_points(each, inventory)
        if points:
            return f", mounted at {points[0]}"
        if is_swap(each, inventory):
            return ", in use as swap"
    return ""


def _devices_above(device: BlockDevice, inventory: DiskInventory, depth: int) -> Iterator[BlockDevice]:
    yield device
    if depth < _DEPTH_MAX:
        held = (inventory.by_name(name) for name in device.holders)
        for upper in (*inventory.partitions_of(device), *held):
            if upper is not None:
                yield from _devices_above(upper, inventory, depth + 1)


def _numbers_below(number: int, inventory: DiskInventory, probe: LoopProbe, depth: int) -> Iterator[int]:
    device = inventory.devices.get(number)
    if device is None or depth > _DEPTH_MAX:
        return
    yield number
    if device.disk_number != number:
        yield from _numbers_below(device.disk_number, inventory, probe, depth + 1)
    for name in device.slaves:
        slave = inventory.by_name(name)
        if slave is not None:
            yield from _numbers_below(slave.number, inventory, probe, depth + 1)
    if device.kind is DeviceKind.LOOP and device.label:
        under = inventory.by_path(device.label)
        if under is not None:
            yield from _numbers_below(under.number, inventory, probe, depth + 1)
            return
        file = probe(device)
        filesystem_number = file.filesystem_number if file else 0
        yield from _devices_of_path(device.label, filesystem_number, inventory, probe, depth + 1)


def _devices_of_path(
    path: str, filesystem_number: int, inventory: DiskInventory, probe: LoopProbe, depth: int
) -> Iterator[int]:
    if filesystem_number in inventory.devices:
        yield from _numbers_below(filesystem_number, inventory, probe, depth)
        return
    by_number = [
        mount for mount in inventory.mounts if filesystem_number and mount.number == filesystem_number
    ]
    mount = by_number[0] if by_number else mount_of(path, inventory.mounts)
    if mount is not None:
        yield from _devices_of_mount(mount, inventory, probe, depth)


def _devices_of_mount(mount: Mount, inventory: DiskInventory, probe: LoopProbe, depth: int) -> Iterator[int]:
    if depth > _DEPTH_MAX:
        return
    for number in _mounted_numbers(mount, inventory):
        yield from _numbers_below(number, inventory, probe, depth + 1)
    others = [other for other in inventory.mounts if other is not mount]
    for layer in mount.layers:
        under = mount_of(layer, others)
        # A layer's path belongs to the namespace that created the overlay, often an initramfs that is gone. If only
        # the root mount contains it, its device is unknown.
        if under is not None and under.point != mount.point:
            yield from _devices_of_mount(under, inventory, probe, depth + 1)


def _mounted_numbers(mount: Mount, inventory: DiskInventory) -> set[int]:
    """Return the device numbers of a mount; a filesystem without a number of its own names its device as source."""
    if mount.number in inventory.devices:
        return {mount.number}
    if os.major(mount.number) != 0 or not mount.source.startswith("/"):
        return set()
    device = inventory.by_path(mount.source)
    if device is None:
        return set()
    members = (inventory.by_name(name) for name in inventory.pool_members.get(device.name, ()))
    return {device.number, *(member.number for member in members if member is not None)}


def _names(path: str, device: BlockDevice, inventory: DiskInventory) -> bool:
    found = inventory.by_path(path) if path.startswith("/") else None
    return found is not None and found.number == device.number


def _processes(proc: Path) -> Iterable[Path]:
    try:
        return [folder for folder in proc.iterdir() if folder.name.isdecimal()]
    except OSError:
        return []


def _open_files(folder: Path) -> Iterator[str]:
    try:
        links = list((folder / "fd").iterdir())
    except OSError:  # another user's process, or it has exited
        return
    for link in links:
        yield _link(link)


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return ""
