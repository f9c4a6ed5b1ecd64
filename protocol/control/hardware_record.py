"""A machine's hardware as JSON, bounded: a part of check-ins, and the daemon's record of it."""

from __future__ import annotations

import enum
from typing import Final

from protocol.constants import (
    HARDWARE_DEVICES_MAX,
    HARDWARE_TEXT_BYTES_MAX,
    INVENTORY_VALUE_BYTES_MAX,
    MODALIAS_BYTES_MAX,
    SECTOR_BYTES_MAX,
)
from protocol.model.hardware import (
    DiskHealth,
    FirmwareKind,
    Hardware,
    HardwareCard,
    HardwareController,
    HardwareDisk,
    SmartVerdict,
)
from protocol.schema.json_fields import (
    Boolean,
    ChoiceField,
    Integer,
    JsonRecord,
    Listed,
    Optional,
    PrintableText,
)

_COUNT_MAX: Final = (1 << 53) - 1
"""Largest integer that every JSON reader keeps."""


def _choice(kind: type[enum.StrEnum]) -> ChoiceField:
    return ChoiceField({member.value: member for member in kind})


_TEXT: Final = PrintableText(HARDWARE_TEXT_BYTES_MAX)

DISK_HEALTH: Final[JsonRecord[DiskHealth]] = JsonRecord(
    DiskHealth,
    {
        "verdict": _choice(SmartVerdict),
        "used_percent": Optional(Integer(0, 255)),
        "reallocated_count": Optional(Integer(0, _COUNT_MAX)),
    },
)

HARDWARE_DISK: Final[JsonRecord[HardwareDisk]] = JsonRecord(
    HardwareDisk,
    {
        "name": _TEXT,
        "size_bytes": Integer(0, _COUNT_MAX),
        "sector_bytes": Integer(1, SECTOR_BYTES_MAX),
        "physical_sector_bytes": Integer(1, SECTOR_BYTES_MAX),
        "model": _TEXT,
        "serial": _TEXT,
        "transport": _TEXT,
        "removable": Boolean(),
        "is_candidate": Boolean(),
        "health": DISK_HEALTH,
    },
)

HARDWARE_CARD: Final[JsonRecord[HardwareCard]] = JsonRecord(
    HardwareCard,
    {
        "name": _TEXT,
        "mac": _TEXT,
        "driver": _TEXT,
        "speed_mbps": Optional(Integer(0, 10_000_000)),
        "device_id": _TEXT,
        "modalias": PrintableText(MODALIAS_BYTES_MAX),
        "on_usb": Boolean(),
    },
)

HARDWARE_CONTROLLER: Final[JsonRecord[HardwareController]] = JsonRecord(
    HardwareController,
    {"driver": _TEXT, "device_id": _TEXT, "modalias": PrintableText(MODALIAS_BYTES_MAX)},
)

HARDWARE: Final[JsonRecord[Hardware]] = JsonRecord(
    Hardware,
    {
        "architecture": _TEXT,
        "processor": _TEXT,
        "core_count": Integer(0, 1 << 16),
        "memory_bytes": Integer(0, _COUNT_MAX),
        "firmware": _choice(FirmwareKind),
        "secure_boot": Optional(Boolean()),
        "tpm_version": _TEXT,
        "target": PrintableText(INVENTORY_VALUE_BYTES_MAX),
        "target_is_file": Boolean(),
        "disks": Listed(HARDWARE_DISK, HARDWARE_DEVICES_MAX),
        "cards": Listed(HARDWARE_CARD, HARDWARE_DEVICES_MAX),
        "controllers": Listed(HARDWARE_CONTROLLER, HARDWARE_DEVICES_MAX),
    },
)
