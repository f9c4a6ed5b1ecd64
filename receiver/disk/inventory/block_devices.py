"""Block devices of this machine: identity, properties, and the devices built on them.

:mod:`receiver.disk.inventory.read_devices` reads them, :mod:`receiver.disk.inventory.holders` finds their users, and
:mod:`receiver.disk.inventory.disk_contents` reads their content.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from receiver.disk.inventory.mounts import Mount, device_number

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


def normalized_wwn(text: str) -> str:
    """Return a world wide name without the prefixes and letter case in which tools differ."""
    return _WWN_PREFIX.sub("", text.strip().lower())
