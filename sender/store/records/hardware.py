"""A machine's hardware as the database keeps it, and as a line of a table."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from protocol.model.hardware import DiskHealth, Hardware, HardwareDisk
from protocol.shared.units import format_bytes
from sender.store.records.machines import Machine


@dataclasses.dataclass(frozen=True, slots=True)
class MachineHardware:
    """Hardware of a machine.

    Attributes:
        at: time of the report.
    """

    machine_id: str
    at: datetime
    hardware: Hardware


@dataclasses.dataclass(frozen=True, slots=True)
class InventoryLine:
    """A machine with its hardware as a line of a table; several disks or cards share a cell, with semicolons.

    Attributes:
        reported_at: time at which its agent reported the hardware; None if it never did.
    """

    machine: str
    machine_id: str
    room_id: str | None
    position: str
    serial: str
    asset_tag: str
    macs: str
    last_seen_at: datetime | None
    reported_at: datetime | None
    architecture: str
    processor: str
    core_count: int | None
    memory_bytes: int | None
    firmware: str
    secure_boot: bool | None
    tpm_version: str
    disks: str
    sector_bytes: str
    smart: str
    cards: str
    drivers: str


def inventory_line(machine: Machine, reported: MachineHardware | None) -> InventoryLine:
    """Return the line of a machine."""
    hardware = None if reported is None else reported.hardware
    disks, cards = (hardware.disks, hardware.cards) if hardware else ((), ())
    return InventoryLine(
        machine=machine.name,
        machine_id=machine.machine_id,
        room_id=machine.room_id,
        position=machine.position,
        serial=machine.serial,
        asset_tag=machine.asset_tag,
        macs=" ".join(machine.macs),
        last_seen_at=machine.last_seen_at,
        reported_at=None if reported is None else reported.at,
        architecture=hardware.architecture if hardware else "",
        processor=hardware.processor if hardware else "",
        core_count=hardware.core_count if hardware else None,
        memory_bytes=hardware.memory_bytes if hardware else None,
        firmware=hardware.firmware if hardware else "",
        secure_boot=hardware.secure_boot if hardware else None,
        tpm_version=hardware.tpm_version if hardware else "",
        disks="; ".join(disk_text(disk) for disk in disks),
        sector_bytes="; ".join(str(disk.sector_bytes) for disk in disks),
        smart="; ".join(health_text(disk.health) for disk in disks),
        cards="; ".join(" ".join(filter(None, (card.name, card.mac, card.device_id))) for card in cards),
        drivers="; ".join(card.driver or "none" for card in cards),
    )


def disk_text(disk: HardwareDisk) -> str:
    """Return name, size, model and serial number of a disk."""
    serial = f"serial {disk.serial}" if disk.serial else ""
    return " ".join(filter(None, (disk.name, format_bytes(disk.size_bytes), disk.model, serial)))


def health_text(health: DiskHealth) -> str:
    """Return a disk's health in words."""
    texts = [health.verdict.value]
    texts += [] if health.used_percent is None else [f"{health.used_percent} % used"]
    texts += [f"{health.reallocated_count} reallocated"] if health.reallocated_count else []
    return ", ".join(texts)
