"""Hardware besides virtio: little memory, NVMe with e1000e, growing disks, and the full kernel with firmware."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.constants import MIB
from tests.support.machines.debian_image import PROMPT as DEBIAN_PROMPT
from tests.support.machines.micro_image import PROMPT
from tests.support.machines.netboot_room import (
    AGENT_STARTED,
    BOOT_LIMIT_S,
    CAST_LIMIT_S,
    NetbootRoom,
)
from tests.support.machines.virtual_machine import Disk, Firmware, MachineSpec, VirtualMachine
from tests.support.network.lab import Program

pytestmark = pytest.mark.needs_root


@pytest.fixture
def services(room: NetbootRoom, medium: Path) -> Iterator[Program]:
    with room.start_boot_services(medium) as services:
        yield services


def _image(
    room: NetbootRoom, image: str, specs: dict[str, MachineSpec], prompt: str, *options: str
) -> list[str]:
    """Cast to these machines, wait for their new systems, and return the texts of their consoles."""
    room.create_room("hardware", {name: tap for tap, name in enumerate(specs)})
    machines: list[VirtualMachine] = []
    with room.cast_to(image, "hardware", "--max-wait", "10m", *options) as cast:
        try:
            for tap, (name, spec) in enumerate(specs.items()):
                machines.append(VirtualMachine(room.network, tap, spec, name=name))
            for machine in machines:
                booted = machine.console.wait_for(AGENT_STARTED, 2 * BOOT_LIMIT_S)
                machine.console.wait_for(prompt, 2 * CAST_LIMIT_S, after=booted)
            assert cast.wait(CAST_LIMIT_S) == 0, cast.describe()
        finally:
            for machine in machines:
                machine.close()
    room.remove_room("hardware")
    return [machine.console.text for machine in machines]


def test_512_mb_of_memory_complete_a_cast(
    room: NetbootRoom, services: Program, micro: str, tmp_path: Path
) -> None:
    spec = MachineSpec(disks=(Disk.blank(tmp_path / "disk"),), memory_mib=512)
    _image(room, micro, {"small": spec}, PROMPT)


def test_nvme_and_e1000e_with_the_full_kernel_and_firmware(
    room: NetbootRoom, micro_for_all: tuple[Path, str], tmp_path: Path
) -> None:
    medium, image = micro_for_all
    record = json.loads((medium / "medium.json").read_text())
    print(f"kernel {record['kernel_release']}: {record['files']}")
    packages = {one["name"] for one in json.loads((medium / "sbom.cdx.json").read_text())["components"]}
    assert packages >= {"firmware-realtek", "firmware-bnx2"}
    assert (medium / "firmware").stat().st_size > 5 * MIB
    disk = Disk.blank(tmp_path / "disk", model="nvme")
    spec = MachineSpec(Firmware.UEFI, disks=(disk,), card="e1000e", memory_mib=2048)
    with room.start_boot_services(medium):
        (text,) = _image(room, image, {"nvme": spec}, PROMPT)
    assert "/dev/nvme0n1" in text


def test_a_real_debian_boots_on_two_machines_and_has_grown(
    room: NetbootRoom, medium: Path, debian: str, tmp_path: Path
) -> None:
    bios = MachineSpec(disks=(Disk.blank(tmp_path / "bios", 4 << 30),))
    uefi = dataclasses.replace(bios, firmware=Firmware.UEFI, disks=(Disk.blank(tmp_path / "uefi", 4 << 30),))
    with room.start_boot_services(medium, words=["diskcast.grow=yes"]):
        texts = _image(room, debian, {"bios": bios, "uefi": uefi}, DEBIAN_PROMPT)
    for text in texts:
        assert "grew" in text or "grown" in text, text[-3000:]
