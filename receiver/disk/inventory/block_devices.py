"""Block devices of this machine as sysfs reports them: identity, properties, and the devices built on them.

No device is opened here: a sleeping disk stays asleep, and a hanging disk doesn't block the list. See
:mod:`receiver.disk.inventory.holders` for a device's users and :mod:`receiver.disk.inventory.disk_contents` for its
content.
"""

from __future__ import annotations

import dataclasses
import enum
import fcntl
import functools
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from receiver.disk.inventory.mounts import Mount, device_number, parse_mounts, parse_swaps

_SYSFS_SECTOR_BYTES: Final = 512
"""Unit of ``size`` in sysfs, independent of the device's sectors (Documentation/ABI/stable/sysfs-block)."""

_BLKGETDISKSEQ: Final = 0x80081280  # linux/fs.h

_VIRTUAL_NAME: Final = re.compile(r"ram\d+|zram\d+|fd\d+|mmcblk\d+(boot\d+|rpmb)")
"""RAM disks, floppy disks and an eMMC's boot areas: never the target of an image."""

_WWN_PREFIX: Final = re.compile(r"^(0x|naa\.|eui\.|t10\.|uuid\.|nvme\.|wwn-)")


@dataclasses.dataclass(frozen=True, slots=True)
class SystemPaths:
    """Directories in which the kernel and udev describe the devices; tests use others."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    udev: Path = Path("/run/udev/data")


SYSTEM_PATHS: Final = SystemPaths()


class DeviceKind(enum.StrEnum):
    """The kind of a block device."""

    DISK = "disk"
    PARTITION = "partition"
    LOOP = "loop"
    MAPPED = "device-mapper"
    RAID = "RAID"
    OPTICAL = "optical drive"


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """The identity of a device: another disk under the same name has a different one."""

    number: int
    """Device number, as ``st_rdev``."""
    disk_sequence: int | None
    """A number that the kernel never gives to a second disk; None before Linux 5.15."""
    size_bytes: int
    serials: tuple[str, ...]
    wwn: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """A disk, a partition, or a device that the kernel builds from others."""

    name: str
    """The kernel's name, as in ``/proc/partitions``."""
    path: Path
    kind: DeviceKind
    identity: DeviceIdentity
    removable: bool
    """A portable medium: a card, a stick, anything on USB."""
    read_only: bool
    sector_bytes: int
    physical_sector_bytes: int
    rotational: bool
    transport: str
    """``sata``, ``nvme``, ``usb`` …; empty if unknown."""
    model: str
    label: str = ""
    """The name of a device-mapper device or RAID, or the file of a loop device."""
    mapper_uuid: str = ""
    partition_number: int | None = None
    disk_number: int
    """Device number of the whole disk; for a disk, its own."""
    holders: tuple[str, ...]
    """Names of the devices that are built on this one."""
    slaves: tuple[str, ...]
    """Names of the devices that this one is built on."""

    @property
    def number(self) -> int:
        """Return the device number, as ``st_rdev``."""
        return self.identity.number

    @property
    def size_bytes(self) -> int:
        """Return the size; 0 without a medium."""
        return self.identity.size_bytes

    @property
    def serial(self) -> str:
        """Return the serial number to show; empty if there is none."""
        return self.identity.serials[0] if self.identity.serials else ""


@dataclasses.dataclass(frozen=True, slots=True)
class DiskInventory:
    """A snapshot of all block devices, mounts and swap areas.

    Attributes:
        devices: by device number.
        mounts: mounts in this process's mount namespace.
        swaps: paths of swap devices and swap files.
        pool_members: device names of a filesystem without a device number of its own (btrfs), by the name of each
            member.
    """

    devices: Mapping[int, BlockDevice]
    mounts: tuple[Mount, ...]
    swaps: tuple[str, ...]
    pool_members: Mapping[str, frozenset[str]]

    def by_name(self, name: str) -> BlockDevice | None:
        """Return the device with this kernel name."""
        return next((device for device in self.devices.values() if device.name == name), None)

    def by_path(self, path: str) -> BlockDevice | None:
        """Return the device whose node is at ``path``, or that a link there leads to."""
        for device in self.devices.values():
            if str(device.path) == path:
                return device
        # Links such as /dev/mapper/NAME and /dev/disk/by-id/…, and nodes with other names.
        number = device_number(path)
        return None if number is None else self.devices.get(number)

    def disks(self) -> list[BlockDevice]:
        """Return every device that has a size and isn't a partition, ordered by name."""
        return [
            device
            for device in self.devices.values()
            if device.partition_number is None and device.size_bytes > 0
        ]

    def partitions_of(self, disk: BlockDevice) -> list[BlockDevice]:
        """Return the partitions that the kernel has for ``disk``, ordered by number."""
        partitions = [
            device
            for device in self.devices.values()
            if device.disk_number == disk.number and device.partition_number is not None
        ]
        return sorted(partitions, key=lambda partition: partition.partition_number or 0)


def read_inventory(sources: SystemPaths = SYSTEM_PATHS) -> DiskInventory:
    """Read all block devices, mounts and swap areas; takes milliseconds and opens no device."""
    devices = {device.number: device for device in _read_devices(sources)}
    return DiskInventory(
        devices,
        parse_mounts(_read(sources.proc / "self/mountinfo")),
        parse_swaps(_read(sources.proc / "swaps")),
        _read_pools(sources),
    )


def disk_sequence(fd: int) -> int | None:
    """Return the :attr:`DeviceIdentity.disk_sequence` of the disk open on ``fd``; None before Linux 5.15."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, _BLKGETDISKSEQ, bytes(8)), sys.byteorder)
    except OSError:
        return None


def normalized_wwn(text: str) -> str:
    """Return a world wide name without the prefixes and letter case in which tools differ."""
    return _WWN_PREFIX.sub("", text.strip().lower())


def _read_devices(sources: SystemPaths) -> Iterator[BlockDevice]:
    root = sources.sys / "block"
    for name in sorted(_entries(root), key=_natural):
        folder = root / name
        if _VIRTUAL_NAME.fullmatch(name) or _read(folder / "hidden") == "1":  # NVMe multipath's single paths
            continue
        try:
            disk = _read_disk(folder, sources)
        except (OSError, ValueError):  # unplugged while it was being read
            continue
        yield disk
        for child in sorted(_entries(folder), key=_natural):
            number = _read(folder / child / "partition")
            if number.isdecimal():
                try:
                    yield _read_partition(disk, folder / child, int(number), sources)
                except (OSError, ValueError):
                    continue


def _read_disk(folder: Path, sources: SystemPaths) -> BlockDevice:
    name = folder.name
    real = folder.resolve()
    number = _number(folder)
    udev = _read_udev(number, sources)
    kind = _kind(name)
    transport = _transport(real, name, folder, udev)
    queue = folder / "queue"
    sequence = _read(folder / "diskseq")
    carried = transport == "usb" or (transport == "mmc" and _read(folder / "device/type") == "SD")
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
        path=_node(name, sources),
        kind=kind,
        identity=identity,
        removable=_read(folder / "removable") == "1" or carried,
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


def _read_partition(disk: BlockDevice, folder: Path, index: int, sources: SystemPaths) -> BlockDevice:
    identity = dataclasses.replace(disk.identity, number=_number(folder), size_bytes=_size_bytes(folder))
    return dataclasses.replace(
        disk,
        name=folder.name,
        path=_node(folder.name, sources),
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


def _read_udev(number: int, sources: SystemPaths) -> dict[str, str]:
    """Return udev's properties of a device, which it asked the disk for; empty without udev."""
    record = _read(sources.udev / f"b{os.major(number)}:{os.minor(number)}")
    pairs = (line[2:].partition("=") for line in record.splitlines() if line.startswith("E:"))
    return {key: value for key, _, value in pairs}


def _read_pools(sources: SystemPaths) -> dict[str, frozenset[str]]:
    pools: dict[str, frozenset[str]] = {}
    for pool in _entries(sources.sys / "fs/btrfs"):
        members = frozenset(_entries(sources.sys / "fs/btrfs" / pool / "devices"))
        pools.update(dict.fromkeys(members, members))
    return pools


def _number(folder: Path) -> int:
    major, _, minor = _read(folder / "dev").partition(":")
    return os.makedev(int(major), int(minor))


def _size_bytes(folder: Path) -> int:
    return int(_read(folder / "size") or 0) * _SYSFS_SECTOR_BYTES


def _node(name: str, sources: SystemPaths) -> Path:
    return sources.dev / name.replace("!", "/")  # as devtmpfs names them: cciss!c0d0 is /dev/cciss/c0d0


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
