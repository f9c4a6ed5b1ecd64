"""A room of bare machines, from power-on to a verified disk that boots, with nobody touching them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.machines.micro_image import PROMPT, make_micro_image
from tests.support.machines.netboot_room import AGENT_STARTED, BOOT_LIMIT_S, CAST_LIMIT_S, NetbootRoom
from tests.support.machines.virtual_machine import Disk, Firmware, MachineSpec, VirtualMachine

pytestmark = pytest.mark.needs_root


def test_bare_machines_boot_from_the_network_and_then_from_their_new_disks(tmp_path: Path) -> None:
    with NetbootRoom(tmp_path) as room:
        medium = room.build_medium(tmp_path / "medium", "--cloud", "--quick")
        room.start_boot_services(medium)
        room.add_image(make_micro_image(tmp_path / "micro.raw", medium), "micro")
        room.create_room("lab", {"pc01": 0, "pc02": 1})
        cast = room.cast_to("micro", "lab", "--max-wait", "10m")
        bios = MachineSpec(disks=(Disk.blank(tmp_path / "pc01.disk"),))
        uefi = MachineSpec(Firmware.UEFI, disks=(Disk.blank(tmp_path / "pc02.disk"),))
        with (
            VirtualMachine(room.network, 0, bios, name="pc01") as pc01,
            VirtualMachine(room.network, 1, uefi, name="pc02") as pc02,
        ):
            for machine in (pc01, pc02):
                booted = machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)
                machine.console.wait_for(PROMPT, CAST_LIMIT_S, after=booted)
            assert cast.wait(CAST_LIMIT_S) == 0, cast.describe()
