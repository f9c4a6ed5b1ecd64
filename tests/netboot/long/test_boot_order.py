"""Machines whose firmware tries the network first: after the cast they boot their disks, every time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sender.daemon.check_in import IDLE_RESTART_S
from tests.support.machines.micro_image import PROMPT
from tests.support.machines.netboot_room import AGENT_STARTED, BOOT_LIMIT_S, CAST_LIMIT_S, NetbootRoom
from tests.support.machines.virtual_machine import (
    BootOrder,
    Disk,
    Firmware,
    MachineSpec,
    VirtualMachine,
)
from tests.support.network.lab import Program

pytestmark = pytest.mark.needs_root


@pytest.fixture(scope="module")
def services(room: NetbootRoom, medium: Path) -> Iterator[Program]:
    with room.start_boot_services(medium) as services:
        yield services


@pytest.mark.parametrize("firmware", [Firmware.BIOS, Firmware.UEFI])
def test_a_machine_that_boots_from_the_network_first_gets_its_disk_after_the_cast(
    firmware: Firmware, room: NetbootRoom, services: Program, medium: Path, micro: str, tmp_path: Path
) -> None:
    name = f"first-{firmware}"
    initrd_bytes = (medium / "initrd").stat().st_size
    disk = Disk.blank(tmp_path / "disk")
    spec = MachineSpec(firmware, disks=(disk,), boot_order=BootOrder.NETWORK)
    room.create_room(name, {name: 0})
    with room.cast_to(micro, name) as cast, VirtualMachine(room.network, 0, spec, name=name) as machine:
        booted = machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)
        machine.console.wait_for(PROMPT, CAST_LIMIT_S, after=booted)
        assert cast.wait(CAST_LIMIT_S) == 0, cast.describe()
        assert machine.console.text.count(AGENT_STARTED) == 1
    loaded_bytes = room.network.sent_bytes(0)
    assert loaded_bytes > initrd_bytes
    with VirtualMachine(room.network, 0, spec, name=f"{name}-again") as machine:
        machine.console.wait_for(PROMPT, BOOT_LIMIT_S)
        assert AGENT_STARTED not in machine.console.text
    assert room.network.sent_bytes(0) - loaded_bytes < initrd_bytes / 10
    room.remove_room(name)


def test_a_machine_whose_cast_was_called_off_goes_back_to_its_disk(
    room: NetbootRoom, services: Program, micro: str, tmp_path: Path
) -> None:
    """Without it, the machine stays in the live system until somebody switches it off."""
    name, disk = "called-off", Disk.blank(tmp_path / "disk")
    spec = MachineSpec(disks=(disk,), boot_order=BootOrder.NETWORK)
    room.create_room(name, {name: 0})
    with room.cast_to(micro, name) as cast, VirtualMachine(room.network, 0, spec, name=name) as machine:
        machine.console.wait_for(PROMPT, BOOT_LIMIT_S + CAST_LIMIT_S)
        assert cast.wait(CAST_LIMIT_S) == 0, cast.describe()
    [planned] = room.ask("casts", "create", micro, "--room", name, "--in", "10m")
    with VirtualMachine(room.network, 0, spec, name=f"{name}-again") as machine:
        waiting = machine.console.wait_for("waiting for a cast", BOOT_LIMIT_S)
        room.command("casts", "cancel", planned["cast_id"])
        said = machine.console.wait_for(
            "nothing is planned for this machine", IDLE_RESTART_S + BOOT_LIMIT_S, after=waiting
        )
        machine.console.wait_for(PROMPT, BOOT_LIMIT_S, after=said)
        assert machine.console.text.count(AGENT_STARTED) == 1
    room.remove_room(name)
