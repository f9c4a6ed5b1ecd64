"""Hardware of a machine, as its agent reports it and the daemon judges it.

:mod:`protocol.control.hardware_record` has its form on the wire.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

from protocol.shared.units import format_bytes

_DISKS_NAMED_MAX: Final = 8
"""Disks that the textual inventory names: more don't fit a line."""


class FirmwareKind(enum.StrEnum):
    """The firmware by which a machine was booted."""

    BIOS = "bios"
    UEFI = "uefi"
    UNKNOWN = "unknown"
    """No firmware tables: a board without BIOS, or a container."""


class SmartVerdict(enum.StrEnum):
    """A disk's own judgement of its health."""

    PASSED = "passed"
    FAILING = "failing"
    UNKNOWN = "unknown"
    """Not read yet, or the disk doesn't judge itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class DiskHealth:
    """Health of a disk by SMART.

    Attributes:
        used_percent: wear of a solid-state disk, above 100 beyond its rated life; None if unknown.
        reallocated_count: sectors that the disk has replaced by spare ones; None if unknown.
    """

    verdict: SmartVerdict = SmartVerdict.UNKNOWN
    used_percent: int | None = None
    reallocated_count: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class HardwareDisk:
    """A disk.

    Attributes:
        name: the kernel's name.
        sector_bytes: size of its logical sectors.
        transport: ``sata``, ``nvme``, ``usb`` …; empty if unknown.
        is_candidate: the agent's target is this disk, or may be.
    """

    name: str
    size_bytes: int
    sector_bytes: int
    physical_sector_bytes: int
    model: str
    serial: str
    transport: str
    removable: bool
    is_candidate: bool
    health: DiskHealth = DiskHealth()


@dataclasses.dataclass(frozen=True, slots=True)
class HardwareCard:
    """A network card, with or without a driver.

    Attributes:
        name: as in ``ip link``; empty without a driver.
        mac: empty without a driver.
        driver: the kernel's module; empty if no driver uses the card.
        speed_mbps: None without a link.
        device_id: vendor and device, such as ``8086:15fa``; empty if it is unknown.
        modalias: text by which the kernel finds the module.
        on_usb: on the USB bus, such as a dongle or the card of a dock: it may move to another machine.
    """

    name: str
    mac: str
    driver: str
    speed_mbps: int | None
    device_id: str
    modalias: str
    on_usb: bool


@dataclasses.dataclass(frozen=True, slots=True)
class HardwareController:
    """A controller of disks, with or without a driver; fields as those of :class:`HardwareCard`."""

    driver: str
    device_id: str
    modalias: str


@dataclasses.dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware of a machine.

    Attributes:
        architecture: the kernel's name of the processor architecture, such as ``x86_64``.
        processor: model; empty where the kernel doesn't name it.
        core_count: processors that the kernel schedules.
        memory_bytes: the kernel's MemTotal; 0 if it is unknown.
        secure_boot: enforced by the firmware; None if it is unknown.
        tpm_version: such as ``2``; empty without a TPM.
        target: the target of the agent's casts, as the operator wrote it.
        target_is_file: the target is a file or a partition rather than a disk, which no rule for disks judges.
    """

    architecture: str
    processor: str
    core_count: int
    memory_bytes: int
    firmware: FirmwareKind
    secure_boot: bool | None
    tpm_version: str
    target: str
    target_is_file: bool
    disks: tuple[HardwareDisk, ...] = ()
    cards: tuple[HardwareCard, ...] = ()
    controllers: tuple[HardwareController, ...] = ()


def hardware_texts(hardware: Hardware) -> dict[str, str]:
    """Return the entries of a machine's textual inventory that describe its hardware; empty ones are left out."""
    firmware = "" if hardware.firmware is FirmwareKind.UNKNOWN else hardware.firmware.upper()
    named = [
        " ".join(filter(None, (disk.name, format_bytes(disk.size_bytes), disk.model)))
        for disk in hardware.disks
    ]
    texts = {
        "firmware": f"{firmware}, Secure Boot" if hardware.secure_boot else firmware,
        "processor": hardware.processor,
        "processors": str(hardware.core_count),
        "memory": format_bytes(hardware.memory_bytes) if hardware.memory_bytes else "",
        "disks": ", ".join(named[:_DISKS_NAMED_MAX]),
    }
    return {name: text for name, text in texts.items() if text}


def search_text(hardware: Hardware) -> str:
    """Return the words by which an operator finds a machine, in lower case: models, serial numbers, drivers, …"""
    words = [hardware.architecture, hardware.processor, hardware.firmware]
    words += ["secure boot"] if hardware.secure_boot else []
    words += [f"tpm {hardware.tpm_version}"] if hardware.tpm_version else []
    for disk in hardware.disks:
        words += [disk.model, disk.serial, disk.transport, format_bytes(disk.size_bytes)]
        words += ["4kn"] if disk.sector_bytes > 512 else []
        words += [f"smart {disk.health.verdict}"] if disk.health.verdict is not SmartVerdict.UNKNOWN else []
    for card in hardware.cards:
        words += [card.mac, card.driver or "no driver", card.device_id]
    return " ".join(dict.fromkeys(" ".join(word.split()).lower() for word in words if word))
