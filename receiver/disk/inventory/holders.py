"""What uses a block device, in words, and which devices something lies on: up and down the kernel's stack.

The kernel alone decides whether a device is free (open(2), O_EXCL); this says by whom it isn't, and how to release it.
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
"""Devices above devices; the kernel's own stacks are far lower."""


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """Something that holds a device."""

    held: Path
    """The device, or one of its partitions, or the disk that it is a partition of."""
    state: str
    """What that is: ``mounted at /mnt``."""
    mend: str
    """The command that ends it."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoopFile:
    """The file behind a loop device, as the kernel knows it: also where no path leads to it any more."""

    filesystem_number: int
    inode: int


LoopProbe = Callable[[BlockDevice], LoopFile | None]


def loop_file(device: BlockDevice) -> LoopFile | None:
    """Ask a loop device for its file; None if it can't be asked (needs root)."""
    with contextlib.suppress(OSError):
        fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO_BYTES))
        finally:
            os.close(fd)
        number, inode = struct.unpack_from("=QQ", info)
        return LoopFile(number, inode)
    return None


def uses_of(device: BlockDevice, inventory: DiskInventory) -> list[Use]:
    """All that holds ``device``: itself, one of its partitions, or the disk that it is a partition of."""
    uses = list(_direct_uses(device, inventory))
    for partition in inventory.partitions_of(device):
        uses += _direct_uses(partition, inventory)
    if device.partition_number is not None:
        uses += _direct_uses(inventory.devices[device.disk_number], inventory)
    return list(dict.fromkeys(uses))


def mount_points(device: BlockDevice, inventory: DiskInventory) -> list[str]:
    """Where ``device`` is mounted, not by way of others."""
    return [mount.point for mount in inventory.mounts if device.number in _mounted_numbers(mount, inventory)]


def is_swap(device: BlockDevice, inventory: DiskInventory) -> bool:
    """Whether the kernel swaps to ``device`` itself."""
    found = (inventory.by_path(path) for path in inventory.swaps)
    return any(swap is not None and swap.number == device.number for swap in found)


def system_devices(inventory: DiskInventory, probe: LoopProbe = loop_file) -> dict[int, str]:
    """Every device that the running system stands on, by number, with the mount point that says so.

    Found through partitions, device-mapper, RAID, loop devices and the layers of overlays: as live systems stack them.
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
    """``device`` and all that it lies on: its disk, the members of a RAID, the disk of a loop device's file."""
    return frozenset(_below(device.number, inventory, probe, 0))


def devices_of_file(
    path: Path, inventory: DiskInventory, *, filesystem_number: int = 0, probe: LoopProbe = loop_file
) -> frozenset[int]:
    """All devices that the filesystem of a file lies on.

    Args:
        path: the file, absolute.
        inventory: of this machine.
        filesystem_number: its ``st_dev``, which is right where ``path`` is one of another mount namespace.
        probe: asks loop devices.
    """
    return frozenset(_devices_of_path(str(path), filesystem_number, inventory, probe, 0))


def find_others(device: BlockDevice, inventory: DiskInventory, sources: SystemPaths) -> list[Use]:
    """Who else may hold a device that the kernel calls busy: other programs, mounts in other namespaces.

    Looks through every process: for the words of a refusal only.
    """
    family = {device.number, device.disk_number}
    family |= {partition.number for partition in inventory.partitions_of(device)}
    paths = {str(inventory.devices[number].path) for number in family if number in inventory.devices}
    uses: list[Use] = []
    seen_namespaces: set[str] = {_link(sources.proc / "self/ns/mnt")}
    for folder in _processes(sources.proc):
        process_id = folder.name
        command = _text(folder / "comm").strip()
        if int(process_id) != os.getpid() and any(target in paths for target in _open_files(folder)):
            state = f"open in process {process_id} ({command})"
            uses.append(Use(device.path, state, f"end process {process_id}"))
        namespace = _link(folder / "ns/mnt")
        if namespace not in seen_namespaces:
            seen_namespaces.add(namespace)
            for mount in parse_mounts(_text(folder / "mountinfo")):
                if mount.number in family:
                    state = (
                        f"mounted at {mount.point} in the mount namespace of process {process_id} ({command})"
                    )
                    mend = f"nsenter --mount --target {process_id} umount {shlex.quote(mount.point)}"
                    uses.append(Use(inventory.devices[mount.number].path, state, mend))
    return list(dict.fromkeys(uses))


def _direct_uses(device: BlockDevice, inventory: DiskInventory) -> Iterator[Use]:
    for point in mount_points(device, inventory):
        yield Use(device.path, f"mounted at {point}", f"umount {shlex.quote(point)}")
    if is_swap(device, inventory):
        yield Use(device.path, "used as swap", f"swapoff {device.path}")
    for name in device.holders:
        yield _use_by_holder(device, name, inventory)
    for other in inventory.devices.values():
        # The kernel doesn't claim what a loop device is set up over: O_EXCL wouldn't notice.
        if other.kind is DeviceKind.LOOP and _names(other.label, device, inventory):
            where = _where_mounted(other, inventory)
            state = f"what the loop device {other.path} is set up over{where}"
            yield Use(device.path, state, f"losetup --detach {other.path}")


def _use_by_holder(device: BlockDevice, name: str, inventory: DiskInventory) -> Use:
    holder = inventory.by_name(name)
    if holder is None:
        return Use(device.path, f"part of {name}", f"release {name}")
    where = _where_mounted(holder, inventory)
    if holder.kind is DeviceKind.RAID:
        return Use(device.path, f"part of the RAID {holder.path}{where}", f"mdadm --stop {holder.path}")
    if holder.kind is DeviceKind.MAPPED:
        kind, mend = _mapper_words(holder)
        return Use(device.path, f"part of {kind} {holder.label} ({holder.path}){where}", mend)
    return Use(device.path, f"part of {holder.path}{where}", f"release {holder.path}")


def _mapper_words(holder: BlockDevice) -> tuple[str, str]:
    kind, _, _ = holder.mapper_uuid.partition("-")
    if kind == "LVM":
        # Device-mapper doubles the dashes within the names: "my--group-root" is root of my-group.
        group = holder.label.replace("--", "\0").partition("-")[0].replace("\0", "-")
        return "the LVM volume", f"vgchange --activate n {group}"
    if kind == "CRYPT":
        return "the encrypted device", f"cryptsetup close {holder.label}"
    if kind == "mpath":
        return "the multipath device", f"name that one instead: --target /dev/mapper/{holder.label}"
    return "the device-mapper device", f"dmsetup remove {holder.label}"


def _where_mounted(device: BlockDevice, inventory: DiskInventory) -> str:
    """``, mounted at /``: of the device, or of whatever is built on it."""
    for each in _above(device, inventory, 0):
        points = mount_points(each, inventory)
        if points:
            return f", mounted at {points[0]}"
        if is_swap(each, inventory):
            return ", in use as swap"
    return ""


def _above(device: BlockDevice, inventory: DiskInventory, depth: int) -> Iterator[BlockDevice]:
    yield device
    if depth < _DEPTH_MAX:
        held = (inventory.by_name(name) for name in device.holders)
        for upper in (*inventory.partitions_of(device), *held):
            if upper is not None:
                yield from _above(upper, inventory, depth + 1)


def _below(number: int, inventory: DiskInventory, probe: LoopProbe, depth: int) -> Iterator[int]:
    device = inventory.devices.get(number)
    if device is None or depth > _DEPTH_MAX:
        return
    yield number
    if device.disk_number != number:
        yield from _below(device.disk_number, inventory, probe, depth + 1)
    for name in device.slaves:
        slave = inventory.by_name(name)
        if slave is not None:
            yield from _below(slave.number, inventory, probe, depth + 1)
    if device.kind is DeviceKind.LOOP and device.label:
        under = inventory.by_path(device.label)
        if under is not None:
            yield from _below(under.number, inventory, probe, depth + 1)
            return
        file = probe(device)
        filesystem_number = file.filesystem_number if file else 0
        yield from _devices_of_path(device.label, filesystem_number, inventory, probe, depth + 1)


def _devices_of_path(
    path: str, filesystem_number: int, inventory: DiskInventory, probe: LoopProbe, depth: int
) -> Iterator[int]:
    if filesystem_number in inventory.devices:
        yield from _below(filesystem_number, inventory, probe, depth)
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
        yield from _below(number, inventory, probe, depth + 1)
    others = [other for other in inventory.mounts if other is not mount]
    for layer in mount.layers:
        under = mount_of(layer, others)
        # A layer's path is one of the namespace that made the overlay, often an initramfs that is gone: where
        # nothing but the root contains it, it isn't known.
        if under is not None and under.point != mount.point:
            yield from _devices_of_mount(under, inventory, probe, depth + 1)


def _mounted_numbers(mount: Mount, inventory: DiskInventory) -> set[int]:
    """Device numbers that a mount holds; a filesystem without one of its own says its device as its source."""
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
    except OSError:  # another user's, or it has ended
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
