"""Ways to the live system besides PXE: Secure Boot, UEFI HTTP Boot, a USB stick; each one ends at a verified disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.machines.micro_image import PROMPT
from tests.support.machines.netboot_room import AGENT_STARTED, BOOT_LIMIT_S, CAST_LIMIT_S, NetbootRoom
from tests.support.machines.virtual_machine import (
    BootOrder,
    Disk,
    Firmware,
    MachineSpec,
    VirtualMachine,
)

pytestmark = pytest.mark.needs_root


def _image_machine(room: NetbootRoom, image: str, spec: MachineSpec, name: str) -> str:
    """Cast to one machine that boots as ``spec`` says, wait for its new system, and return the console's text."""
    room.create_room(name, {name: 0})
    with room.cast_to(image, name) as cast, VirtualMachine(room.network, 0, spec, name=name) as machine:
        booted = machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)
        machine.console.wait_for(PROMPT, CAST_LIMIT_S, after=booted)
        assert cast.wait(CAST_LIMIT_S) == 0, cast.describe()
        text = machine.console.text
    room.remove_room(name)
    return text


def test_secure_boot_is_enforced_from_the_network_to_the_new_disk(
    room: NetbootRoom, medium: Path, micro: str, tmp_path: Path
) -> None:
    spec = MachineSpec(Firmware.SECURE_BOOT, disks=(Disk.blank(tmp_path / "disk"),), memory_mib=1536)
    room.restart_dhcp(*room.secure_boot_dhcp_options())
    try:
        with room.start_boot_services(medium, "--secure-boot"):
            text = _image_machine(room, micro, spec, "secure")
    finally:
        room.restart_dhcp()
    assert "lockdown integrity" in text, text[-3000:]


def test_secure_boot_refuses_an_unsigned_loader(room: NetbootRoom, medium: Path, tmp_path: Path) -> None:
    disk = Disk.blank(tmp_path / "disk")
    spec = MachineSpec(Firmware.SECURE_BOOT, disks=(disk,), memory_mib=1536)
    with room.start_boot_services(medium), VirtualMachine(room.network, 0, spec, name="unsigned") as machine:
        machine.console.wait_for("Access Denied", BOOT_LIMIT_S)
    assert disk.is_blank


def test_uefi_http_boot(room: NetbootRoom, medium: Path, micro: str, tmp_path: Path) -> None:
    only_http = ("opt/org.tianocore/IPv4PXESupport=n", "opt/org.tianocore/IPv6PXESupport=n")
    spec = MachineSpec(
        Firmware.UEFI,
        disks=(Disk.blank(tmp_path / "disk"),),
        firmware_options=only_http,
        card_options=("romfile=",),  # the firmware's own driver: iPXE's has no HTTP Boot
    )
    with room.start_boot_services(medium):
        _image_machine(room, micro, spec, "http")
    assert '"firmware": "uefi-http"' in room.boot_log


@pytest.mark.parametrize("firmware", list(Firmware))
def test_a_usb_stick_needs_no_boot_services(
    firmware: Firmware, room: NetbootRoom, stick: Path, micro: str, tmp_path: Path
) -> None:
    name = f"stick-{firmware}".replace("_", "-")
    disk = Disk.blank(tmp_path / "disk")
    plugged = MachineSpec(firmware, disks=(disk,), stick=stick, boot_order=BootOrder.STICK, memory_mib=1536)
    room.create_room(name, {name: 0})
    with room.cast_to(micro, name) as cast, VirtualMachine(room.network, 0, plugged, name=name) as machine:
        machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)
        assert cast.wait(CAST_LIMIT_S) == 0, cast.describe()
    unplugged = MachineSpec(firmware, disks=(disk,))
    with VirtualMachine(room.network, 0, unplugged, name=f"{name}-unplugged") as machine:
        machine.console.wait_for(PROMPT, BOOT_LIMIT_S)
    room.remove_room(name)
