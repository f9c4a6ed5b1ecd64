"""PCI devices of this machine, as sysfs shows them, with or without a driver."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

SYSTEM_ROOT: Final = Path("/sys")

DEVICES_MAX: Final = 256

_ETHERNET: Final = 0x0200
"""PCI class and subclass. Other network controllers, such as Wi-Fi, receive no casts."""
_STORAGE: Final = 0x01
"""PCI class: mass storage."""


@dataclasses.dataclass(frozen=True, slots=True)
class PciDevice:
    """A PCI device.

    Attributes:
        address: such as ``0000:00:1f.2``.
        id_text: vendor and device, such as ``8086:15fa``.
        class_code: 24 bits: class, subclass, programming interface.
        modalias: text that the kernel's module loader matches.
        driver: driver that is bound to it; empty without one.
    """

    address: str
    id_text: str
    class_code: int
    modalias: str
    driver: str

    @property
    def is_network_card(self) -> bool:
        """Return whether it is an Ethernet card."""
        return self.class_code >> 8 == _ETHERNET

    @property
    def is_disk_controller(self) -> bool:
        """Return whether disks are attached to it."""
        return self.class_code >> 16 == _STORAGE


def read_pci_devices(root: Path = SYSTEM_ROOT) -> list[PciDevice]:
    """Return the PCI devices, by address."""
    found = []
    try:
        folders = sorted((root / "bus/pci/devices").iterdir())
    except OSError:
        return []
    for folder in folders[:DEVICES_MAX]:
        vendor, device, code = (_hexadecimal(folder / name) for name in ("vendor", "device", "class"))
        found.append(
            PciDevice(
                address=folder.name,
                id_text=f"{vendor:04x}:{device:04x}",
                class_code=code,
                modalias=_text(folder / "modalias"),
                driver=driver_of(folder),
            )
        )
    return found


def driver_of(folder: Path) -> str:
    """Return the driver of the device with this folder in sysfs; empty without one."""
    try:
        return (folder / "driver").resolve(strict=True).name
    except OSError:
        return ""


def _hexadecimal(path: Path) -> int:
    try:
        return int(_text(path), 16)
    except ValueError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
