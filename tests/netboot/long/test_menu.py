"""The menu for one machine in the live system: a technician at the serial console, a daemon, and a bare disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.control.boot_parameters import AfterCast, BootParameters, LiveMode, format_boot_parameters
from sender.netboot.serve.boot_scripts import MENU_KEY
from tests.support.machines.direct_boot import direct_boot
from tests.support.machines.micro_image import PROMPT
from tests.support.machines.netboot_room import BOOT_LIMIT_S, SERVER_URL, NetbootRoom
from tests.support.machines.technician import ANSWER_LIMIT_S, SerialTechnician
from tests.support.machines.virtual_machine import BootOrder, Disk, MachineSpec, VirtualMachine, mac_of

pytestmark = pytest.mark.needs_root

_SERIAL = "MENU-0001"


def test_a_technician_restores_one_machine_at_its_serial_console(
    room: NetbootRoom, medium: Path, micro: str, tmp_path: Path
) -> None:
    """A wrong serial number writes nothing; the right one images the disk, which then boots."""
    disk = Disk.blank(tmp_path / "disk", serial=_SERIAL)
    words = format_boot_parameters(
        BootParameters(
            servers=(SERVER_URL,),
            pins=(room.pin,),
            boot_mac=mac_of(0),
            mode=LiveMode.MENU,
            after=AfterCast.POWEROFF,
        )
    )
    token = room.operator_token
    spec = MachineSpec(disks=(disk,), extra=direct_boot(medium, words))
    with VirtualMachine(room.network, 0, spec, name="menu") as machine:
        technician = SerialTechnician(machine.console)
        technician.confirms(micro, "MENU-0002", token, menu_limit_s=BOOT_LIMIT_S)
        technician.sees("Nothing was written")
        assert disk.is_blank

        technician.confirms(micro, _SERIAL, token)
        technician.sees_success()
        technician.sees("powers off in")
        machine.wait_off(ANSWER_LIMIT_S)
        assert token not in machine.console.text
    with VirtualMachine(room.network, 0, MachineSpec(disks=(disk,)), name="menu-restored") as restored:
        restored.console.wait_for(PROMPT, BOOT_LIMIT_S)


def test_the_boot_stick_is_no_disk_to_overwrite(
    room: NetbootRoom, medium: Path, stick: Path, tmp_path: Path
) -> None:
    """A technician who takes the wrong number would destroy the stick, and image no machine."""
    words = format_boot_parameters(BootParameters(mode=LiveMode.MENU, boot_mac=mac_of(0)))
    disk = Disk.blank(tmp_path / "disk", serial=_SERIAL)
    # The kernel for virtual machines has no driver for USB.
    spec = MachineSpec(disks=(disk, Disk(stick, serial="STICK")), extra=direct_boot(medium, words))
    with VirtualMachine(room.network, 0, spec, name="menu-stick") as machine:
        technician = SerialTechnician(machine.console)
        technician.chooses("List the disks", BOOT_LIMIT_S)
        technician.sees("holds a boot stick of diskcast")
        technician.sees("can't be used: is a boot stick of diskcast")


def test_a_key_at_power_on_leads_to_the_menu_and_an_imaged_disk(
    room: NetbootRoom, medium: Path, micro: str, tmp_path: Path
) -> None:
    """Nothing is planned for the machine: its boot would end at its disk, which is blank."""
    disk = Disk.blank(tmp_path / "disk", serial=_SERIAL)
    spec = MachineSpec(disks=(disk,), boot_order=BootOrder.NETWORK)
    room.create_room("menu-key", {"menu-key": 0})
    with (
        room.start_boot_services(medium),
        VirtualMachine(room.network, 0, spec, name="menu-key") as machine,
    ):
        technician = SerialTechnician(machine.console)
        technician.sees(f"Press {MENU_KEY} to image this machine", BOOT_LIMIT_S)
        technician.presses(MENU_KEY)
        technician.sees("diskcast: menu started", BOOT_LIMIT_S)
        technician.confirms(micro, _SERIAL, room.operator_token, menu_limit_s=BOOT_LIMIT_S)
        technician.sees_success()
        technician.sees("restarts in")
        technician.sees(PROMPT, BOOT_LIMIT_S)
    room.remove_room("menu-key")
