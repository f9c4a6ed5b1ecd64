"""The block devices of this machine as the kernel tells them in sysfs: what they are, and what is built on them.

Nothing is opened here: a disk that is asleep stays asleep, and one that hangs doesn't hang the list. What uses a device
is told by :mod:`receiver.disk.inventory.holders`, what is on it by :mod:`receiver.disk.inventory.disk_contents`.
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
"""Unit of ``size`` in sysfs, whatever the device's own sectors (Documentation/ABI/stable/sysfs-block)."""

_BLKGETDISKSEQ: Final = 0x80081280  # linux/fs.h

_VIRTUAL_NAME: Final = re.compile(r"ram\d+|zram\d+|fd\d+|mmcblk\d+(boot\d+|rpmb)")
"""Memory, floppy disks and an eMMC's boot areas: nothing that a disk's image goes to."""

_WWN_PREFIX: Final = re.compile(r"^(0x|naa\.|eui\.|t10\.|uuid\.|nvme\.|wwn-)")


@dataclasses.dataclass(frozen=True, slots=True)
class SystemPaths:
    """Where the kernel and udev tell what there is; other places in tests."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    udev: Path = Path("/run/udev/data")


SYSTEM_PATHS: Final = SystemPaths()


class DeviceKind(enum.StrEnum):
    """What stands behind a block device."""

    DISK = "disk"
    PARTITION = "partition"
    LOOP = "loop"
    MAPPED = "device-mapper"
    RAID = "RAID"
    OPTICAL = "optical drive"


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What makes a device this one: another disk under the same name has another."""

    number: int
    """Device number, as ``st_rdev``."""
    disk_sequence: int | None
    """Counts every disk that this kernel has seen, so that none has another's; None before Linux 5.15."""
    size_bytes: int
    serials: tuple[str, ...]
    wwn: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """A disk, a partition or what the kernel makes of other devices."""

    name: str
    """The kernel's, as in ``/proc/partitions``."""
    path: Path
    kind: DeviceKind
    identity: DeviceIdentity
    removable: bool
    """Of a kind that is carried around: a card, a stick, anything on USB."""
    read_only: bool
    sector_bytes: int
    physical_sector_bytes: int
    rotational: bool
    transport: str
    """``sata``, ``nvme``, ``usb`` …; empty where it isn't known."""
    model: str
    label: str = ""
    """The name of a device-mapper device, a RAID's, or the file of a loop device."""
    mapper_uuid: str = ""
    partition_number: int | None = None
    disk_number: int
    """Device number of the whole disk; a disk's own."""
    holders: tuple[str, ...]
    """Names of the devices that are built on it."""
    slaves: tuple[str, ...]
    """Names of the devices that it is built on."""

    @property
    def number(self) -> int:
        """Device number, as ``st_rdev``."""
        return self.identity.number

    @property
    def size_bytes(self) -> int:
        """Size, 0 without a medium."""
        return self.identity.size_bytes

    @property
    def serial(self) -> str:
        """The serial number that is shown; empty where there is none."""
        return self.identity.serials[0] if self.identity.serials else ""


@dataclasses.dataclass(frozen=True, slots=True)
class DiskInventory:
    """All block devices at one moment, with the mounts and swaps of that moment.

    Attributes:
        devices: by device number.
        mounts: of this process's mount namespace.
        swaps: paths of what is swapped to.
        pool_members: device names behind a filesystem that has several or no number of its own (btrfs), by the
            name of any of them.
    """

    devices: Mapping[int, BlockDevice]
    mounts: tuple[Mount, ...]
    swaps: tuple[str, ...]
    pool_members: Mapping[str, frozenset[str]]

    def by_name(self, name: str) -> BlockDevice | None:
        """The device that the kernel calls so."""
        return next((device for device in self.devices.values() if device.name == name), None)

    def by_path(self, path: str) -> BlockDevice | None:
        """The device whose node is at ``path``, or that a link there leads to."""
        for device in self.devices.values():
            if str(device.path) == path:
                return device
        # Links as /dev/mapper/NAME and /dev/disk/by-id/…, and nodes of other names.
        number = device_number(path)
        return None if number is None else self.devices.get(number)

    def disks(self) -> list[BlockDevice]:
        """Everything that isn't a partition and has a size, in the order of the names."""
        return [
            device
            for device in self.devices.values()
            if device.partition_number is None and device.size_bytes > 0
        ]

    def partitions_of(self, disk: BlockDevice) -> list[BlockDevice]:
        """The kernel's partitions of a disk, by number."""
        partitions = [
            device
            for device in self.devices.values()
            if device.disk_number == disk.number and device.partition_number is not None
        ]
        return sorted(partitions, key=lambda partition: partition.partition_number or 0)


def read_inventory(sources: SystemPaths = SYSTEM_PATHS) -> DiskInventory:
    """All block devices, mounts and swaps now; takes milliseconds and opens no device."""
    devices = {device.number: device for device in _read_devices(sources)}
    return DiskInventory(
        devices,
        parse_mounts(_read(sources.proc / "self/mountinfo")),
        parse_swaps(_read(sources.proc / "swaps")),
        _read_pools(sources),
    )


def disk_sequence(fd: int) -> int | None:
    """:attr:`DeviceIdentity.disk_sequence` of the disk that is really behind a descriptor; None before Linux 5.15."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, _BLKGETDISKSEQ, bytes(8)), sys.byteorder)
    except OSError:
        return None


def normalized_wwn(text: str) -> str:
    """A world wide name without the prefixes and the case in which tools differ."""
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
    """How the disk is attached, from where the kernel has put it in its tree of devices."""
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
    # udev's is whole where the kernel's SCSI layer keeps 16 letters of an ATA disk's.
    model = udev.get("ID_MODEL_ENC", "") or _read(folder / "device/model") or _read(folder / "device/name")
    model = re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), model)
    vendor = _read(folder / "device/vendor")
    if vendor and vendor != "ATA" and not vendor.startswith("0x") and vendor not in model:
        model = f"{vendor} {model}"
    return _printable(model)


def _serials(folder: Path, real: Path, udev: Mapping[str, str]) -> tuple[str, ...]:
    """Every serial number that a tool may show for this disk, the one that lsblk shows first."""
    page = _read_bytes(folder / "device/vpd_pg80")  # SCSI: unit serial number behind four bytes of header
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
    """What udev found out by asking the disk itself; empty in systems without udev."""
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
    except OSError:  # not every device tells everything, and any may go away
        return b""


def _printable(text: str) -> str:
    """What a disk says of itself, safe for a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


@functools.cache
def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """``sda2`` before ``sda10``."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name))
