"""Hardware of machines that tests make up."""

from __future__ import annotations

import dataclasses
from typing import Any

from protocol.model.hardware import (
    DiskHealth,
    FirmwareKind,
    Hardware,
    HardwareCard,
    HardwareController,
    HardwareDisk,
    SmartVerdict,
)

E1000E = "pci:v00008086d000015FAsv00001028sd00000A36bc02sc00i00"
AHCI = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"


def sample_disk(**fields: Any) -> HardwareDisk:
    disk = HardwareDisk(
        name="sda",
        size_bytes=500 << 30,
        sector_bytes=512,
        physical_sector_bytes=4096,
        model="WDC WD5000",
        serial="WD-1",
        transport="sata",
        removable=False,
        is_candidate=True,
        health=DiskHealth(SmartVerdict.PASSED, None, 0),
    )
    return dataclasses.replace(disk, **fields)


def sample_card(**fields: Any) -> HardwareCard:
    card = HardwareCard("eth0", "52:54:00:00:00:07", "e1000e", 1000, "8086:15fa", E1000E, on_usb=False)
    return dataclasses.replace(card, **fields)


def sample_hardware(**fields: Any) -> Hardware:
    hardware = Hardware(
        architecture="x86_64",
        processor="Intel(R) Core(TM) i5-8500",
        core_count=6,
        memory_bytes=8 << 30,
        firmware=FirmwareKind.UEFI,
        secure_boot=True,
        tpm_version="2",
        target="auto",
        target_is_file=False,
        disks=(sample_disk(),),
        cards=(sample_card(),),
        controllers=(HardwareController("ahci", "8086:2922", AHCI),),
    )
    return dataclasses.replace(hardware, **fields)
