"""This machine's hardware, as sysfs and /proc show it; no device is opened, so a dying disk delays nothing."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from protocol.constants import HARDWARE_DEVICES_MAX
from protocol.model.hardware import (
    FirmwareKind,
    Hardware,
    HardwareCard,
    HardwareController,
    HardwareDisk,
)
from receiver.disk.inventory.block_devices import SYSTEM_PATHS, BlockDevice, DeviceKind, SystemPaths
from receiver.disk.inventory.read_devices import read_inventory
from receiver.hardware.pci_devices import driver_of, read_pci_devices

_ETHERNET: Final = "1"
"""ARPHRD_ETHER of linux/if_arp.h."""
_SECURE_BOOT: Final = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""Variable of the UEFI specification: four bytes of attributes, then 1 if Secure Boot is enforced."""
_ON_USB: Final = re.compile(r"/usb\d+/")


def read_hardware(
    system_paths: SystemPaths = SYSTEM_PATHS,
    *,
    is_candidate: Callable[[BlockDevice], bool] = lambda _disk: False,
    target: str = "",
    target_is_file: bool = False,
) -> Hardware:
    """Return this machine's hardware without its disks' health; takes milliseconds.

    Args:
        system_paths: directories that describe the devices.
        is_candidate: returns whether a disk is the target of casts, or may be.
        target: that target, as the operator wrote it.
        target_is_file: it is a file or a partition.
    """
    sys, proc = system_paths.sys, system_paths.proc
    firmware = _firmware(sys)
    return Hardware(
        architecture=os.uname().machine,
        processor=_value_of(proc / "cpuinfo", "model name"),
        core_count=os.cpu_count() or 0,
        memory_bytes=read_memory_bytes(proc),
        firmware=firmware,
        secure_boot=_secure_boot(sys) if firmware is FirmwareKind.UEFI else None,
        tpm_version=_text(sys / "class/tpm/tpm0/tpm_version_major"),
        target=target,
        target_is_file=target_is_file,
        disks=tuple(_disks(system_paths, is_candidate))[:HARDWARE_DEVICES_MAX],
        cards=tuple(_cards(sys))[:HARDWARE_DEVICES_MAX],
        controllers=tuple(
            HardwareController(device.driver, device.id_text, device.modalias)
            for device in read_pci_devices(sys)
            if device.is_disk_controller
        )[:HARDWARE_DEVICES_MAX],
    )


def read_memory_bytes(proc: Path = SYSTEM_PATHS.proc) -> int:
    """Return the kernel's MemTotal; 0 if it is unknown."""
    with contextlib.suppress(ValueError, IndexError):
        return int(_value_of(proc / "meminfo", "MemTotal").split()[0]) * 1024
    return 0


def is_on_usb(interface: Path) -> bool:
    """Return whether the card with this folder below ``/sys/class/net`` is on the USB bus."""
    return _ON_USB.search(str((interface / "device").resolve())) is not None


def _firmware(sys: Path) -> FirmwareKind:
    if (sys / "firmware/efi").is_dir():
        return FirmwareKind.UEFI
    return FirmwareKind.BIOS if (sys / "class/dmi/id").is_dir() else FirmwareKind.UNKNOWN


def _secure_boot(sys: Path) -> bool | None:
    with contextlib.suppress(OSError):
        return (sys / _SECURE_BOOT).read_bytes()[4:5] == b"\1"
    return None


def _disks(system_paths: SystemPaths, is_candidate: Callable[[BlockDevice], bool]) -> list[HardwareDisk]:
    """Return the disks, candidates first: they count if there are too many."""
    found = []
    for disk in read_inventory(system_paths).disks():
        candidate = is_candidate(disk)
        has_hardware = (
            disk.kind is DeviceKind.DISK and (system_paths.sys / "block" / disk.name / "device").exists()
        )
        if candidate or has_hardware:
            found.append(
                HardwareDisk(
                    name=disk.name,
                    size_bytes=disk.size_bytes,
                    sector_bytes=disk.sector_bytes,
                    physical_sector_bytes=disk.physical_sector_bytes,
                    model=disk.model,
                    serial=disk.serial,
                    transport=disk.transport,
                    removable=disk.removable,
                    is_candidate=candidate,
                )
            )
    return sorted(found, key=lambda disk: not disk.is_candidate)


def _cards(sys: Path) -> Iterator[HardwareCard]:
    """Yield the Ethernet cards: those that have a driver, then those on PCI that have none."""
    for folder in sorted((sys / "class/net").glob("*")):
        device = folder / "device"
        if not device.exists() or _text(folder / "type") != _ETHERNET or (folder / "phy80211").exists():
            continue  # a virtual interface, or Wi-Fi, which receives no casts
        speed = _text(folder / "speed")
        yield HardwareCard(
            name=folder.name,
            mac=_text(folder / "bonding_slave/perm_hwaddr") or _text(folder / "address"),
            driver=driver_of(device),
            speed_mbps=int(speed) if speed.isdecimal() else None,
            device_id=_device_id(device),
            modalias=_text(device / "modalias"),
            on_usb=is_on_usb(folder),
        )
    for pci in read_pci_devices(sys):
        if pci.is_network_card and not pci.driver:
            yield HardwareCard("", "", "", None, pci.id_text, pci.modalias, on_usb=False)


def _device_id(device: Path) -> str:
    """Return vendor and device, such as ``8086:15fa``; of a card on USB its device's, not its interface's."""
    parent = device.resolve().parent
    for folder, names in ((device, ("vendor", "device")), (parent, ("idVendor", "idProduct"))):
        vendor, number = (_text(folder / name).removeprefix("0x") for name in names)
        if vendor and number:
            return f"{vendor}:{number}"
    return ""


def _value_of(path: Path, wanted: str) -> str:
    """Return the first value of a name in a file of ``NAME: VALUE`` lines; empty without one."""
    for line in _text(path).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == wanted:
            return " ".join(value.split())
    return ""


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip(" \t\r\n\0")
    return ""
