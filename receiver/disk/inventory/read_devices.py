"""Reading the block devices of this machine from sysfs, and udev's database where there is one.

No device is opened: a sleeping disk stays asleep, and a hanging disk doesn't block the list.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from receiver.disk.inventory.block_devices import (
    SYSTEM_PATHS,
    BlockDevice,
    DeviceIdentity,
    DeviceKind,
    DiskInventory,
    SystemPaths,
)
from receiver.disk.inventory.mounts import parse_mounts, parse_swaps

_SYSFS_SECTOR_BYTES: Final = 512
"""Unit of ``size`` in sysfs, independent of the device's sectors (Documentation/ABI/stable/sysfs-block)."""

_BLKGETDISKSEQ: Final = 0x80081280  # linux/fs.h

_VIRTUAL_NAME: Final = re.compile(r"ram\d+|zram\d+|fd\d+|mmcblk\d+(boot\d+|rpmb)")
"""RAM disks, floppy disks and an eMMC's boot areas: never the target of an image."""


def read_inventory(system_paths: SystemPaths = SYSTEM_PATHS) -> DiskInventory:
    """Read all block devices, mounts and swap areas; takes milliseconds and opens no device."""
    devices = {device.number: device for device in _read_devices(system_paths)}
    return DiskInventory(
        devices,
        parse_mounts(_read(system_paths.proc / "self/mountinfo")),
        parse_swaps(_read(system_paths.proc / "swaps")),
        _read_pools(system_paths),
    )


def disk_sequence(fd: int) -> int | None:
    """Return the :attr:`DeviceIdentity.disk_sequence` of the disk open on ``fd``; None before Linux 5.15."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, _BLKGETDISKSEQ, bytes(8)), sys.byteorder)
    except OSError:
        return None


def _read_devices(system_paths: SystemPaths) -> Iterator[BlockDevice]:
    root = system_paths.sys / "block"
    for name in sorted(_entries(root), key=_natural):
        folder = root / name
        if _VIRTUAL_NAME.fullmatch(name) or _read(folder / "hidden") == "1":  # NVMe multipath's single paths
            continue
        try:
            disk = _read_disk(folder, system_paths)
        except (OSError, ValueError):  # unplugged while it was being read
            continue
        yield disk
        for child in sorted(_entries(folder), key=_natural):
            number = _read(folder / child / "partition")
            if number.isdecimal():
                try:
                    yield _read_partition(disk, folder / child, int(number), system_paths)
                except (OSError, ValueError):
                    continue


def _read_disk(folder: Path, system_paths: SystemPaths) -> BlockDevice:
    name = folder.name
    real = folder.resolve()
    number = _number(folder)
    udev = _read_udev(number, system_paths)
    kind = _kind(name)
    transport = _transport(real, name, folder, udev)
    queue = folder / "queue"
    sequence = _read(folder / "diskseq")
    portable = transport == "usb" or (transport == "mmc" and _read(folder / "device/type") == "SD")
    sector_bytes = int(_read(queue / "logical_block_size") or _SYSFS_SECTOR_BYTES)
    identity = DeviceIdentity(
        number=number,
        disk_sequence=int(sequence) if sequence.isdecimal() else None,
        size_bytes=_size_bytes(folder),
        serials=_serials(folder, real, udev),
        wwn=_wwn(folder, udev),
    )
    return BlockDevice(
        name=name,
        path=_node(name, system_paths),
        kind=kind,
        identity=identity,
        removable=_read(folder / "removable") == "1" or portable,
        read_only=_read(folder / "ro") == "1",
        sector_bytes=sector_bytes,
        physical_sector_bytes=int(_read(queue / "physical_block_size") or sector_bytes),
        rotational=_read(queue / "rotational") == "1",
        transport=transport,
        model=_model(folder, udev),
        label=_label(folder, kind),
        mapper_uuid=_read(folder / "dm/uuid"),
        disk_number=number,
        holders=tuple(sorted(_entries(folder / "holders"))),
        slaves=tuple(sorted(_entries(folder / "slaves"))),
    )


def _read_partition(disk: BlockDevice, folder: Path, index: int, system_paths: SystemPaths) -> BlockDevice:
    identity = dataclasses.replace(disk.identity, number=_number(folder), size_bytes=_size_bytes(folder))
    return dataclasses.replace(
        disk,
        name=folder.name,
        path=_node(folder.name, system_paths),
        kind=DeviceKind.PARTITION,
        identity=identity,
        read_only=disk.read_only or _read(folder / "ro") == "1",
        label="",
        partition_number=index,
        holders=tuple(sorted(_entries(folder / "holders"))),
        slaves=(),
    )


def _kind(name: str) -> DeviceKind:
    prefixes = {
        "loop": DeviceKind.LOOP,
        "dm-": DeviceKind.MAPPED,
        "md": DeviceKind.RAID,
        "sr": DeviceKind.OPTICAL,
    }
    return next((kind for prefix, kind in prefixes.items() if name.startswith(prefix)), DeviceKind.DISK)


def _label(folder: Path, kind: DeviceKind) -> str:
    if kind is DeviceKind.MAPPED:
        return _read(folder / "dm/name")
    if kind is DeviceKind.LOOP:
        return _read(folder / "loop/backing_file")
    return ""


def _transport(real: Path, name: str, folder: Path, udev: Mapping[str, str]) -> str:
    """Return how the disk is attached, judged by its place in the kernel's device tree."""
    if _kind(name) is not DeviceKind.DISK:
        return "multipath" if _read(folder / "dm/uuid").startswith("mpath-") else ""
    tree = str(real)
    marks = (
        ("usb", r"/usb\d"),
        ("nvme", r"/nvme"),
        ("virtio", r"/virtio\d"),
        ("mmc", r"/mmc\d"),
        ("iscsi", r"/session\d"),
        ("fc", r"/rport-"),
        ("sata", r"/ata\d"),
        ("sas", r"/end_device-"),
        ("network", r"/(nbd|rbd|drbd)\d"),
    )
    found = next((transport for transport, mark in marks if re.search(mark, tree)), "")
    return found or udev.get("ID_BUS", "")


def _model(folder: Path, udev: Mapping[str, str]) -> str:
    # The kernel's SCSI layer cuts an ATA disk's model after 16 letters; udev has all of it.
    model = udev.get("ID_MODEL_ENC", "") or _read(folder / "device/model") or _read(folder / "device/name")
    model = re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), model)
    vendor = _read(folder / "device/vendor")
    if vendor and vendor != "ATA" and not vendor.startswith("0x") and vendor not in model:
        model = f"{vendor} {model}"
    return _printable(model)


def _serials(folder: Path, real: Path, udev: Mapping[str, str]) -> tuple[str, ...]:
    """Return every serial number that a tool may show for this disk, first the one that lsblk shows."""
    page = _read_bytes(folder / "device/vpd_pg80")  # SCSI unit serial number after a header of four bytes
    candidates = [
        udev.get("ID_SCSI_SERIAL", ""),
        udev.get("ID_SERIAL_SHORT", ""),
        _read(folder / "serial"),
        _read(folder / "device/serial"),
        page[4:].decode("ascii", "replace"),
        _usb_serial(real),
    ]
    serials = (_printable(candidate) for candidate in candidates)
    return tuple(dict.fromkeys(serial for serial in serials if serial))


def _usb_serial(real: Path) -> str:
    for folder in real.parents:
        if (folder / "idVendor").exists():
            return _read(folder / "serial")
    return ""


def _wwn(folder: Path, udev: Mapping[str, str]) -> str:
    known = udev.get("ID_WWN_WITH_EXTENSION", "") or udev.get("ID_WWN", "")
    return _printable(known or _read(folder / "wwid") or _read(folder / "device/wwid"))


def _read_udev(number: int, system_paths: SystemPaths) -> dict[str, str]:
    """Return the device's properties as udev read them from the disk; empty without udev."""
    record = _read(system_paths.udev / f"b{os.major(number)}:{os.minor(number)}")
    pairs = (line[2:].partition("=") for line in record.splitlines() if line.startswith("E:"))
    return {key: value for key, _, value in pairs}


def _read_pools(system_paths: SystemPaths) -> dict[str, frozenset[str]]:
    pools: dict[str, frozenset[str]] = {}
    for pool in _entries(system_paths.sys / "fs/btrfs"):
        members = frozenset(_entries(system_paths.sys / "fs/btrfs" / pool / "devices"))
        pools.update(dict.fromkeys(members, members))
    return pools


def _number(folder: Path) -> int:
    major, _, minor = _read(folder / "dev").partition(":")
    return os.makedev(int(major), int(minor))


def _size_bytes(folder: Path) -> int:
    return int(_read(folder / "size") or 0) * _SYSFS_SECTOR_BYTES


def _node(name: str, system_paths: SystemPaths) -> Path:
    return system_paths.dev / name.replace("!", "/")  # as devtmpfs names them: cciss!c0d0 is /dev/cciss/c0d0


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _read(path: Path) -> str:
    return _read_bytes(path).decode("utf-8", "surrogateescape").strip(" \n\0")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # not every device has every file, and any device may be unplugged
        return b""


def _printable(text: str) -> str:
    """Return a disk's own text without control characters, safe for a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


@functools.cache
def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key that puts ``sda2`` before ``sda10``."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name))
