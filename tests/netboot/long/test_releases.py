"""A boot medium of the next Debian release than this machine's: another kernel, Python, udev and loaders."""

from __future__ import annotations

from pathlib import Path

import pytest

from sender.netboot.build.apt_packages import this_suite
from tests.support.machines.debian_sources import write_debian_sources
from tests.support.machines.micro_image import PROMPT, make_micro_image
from tests.support.machines.netboot_room import AGENT_STARTED, BOOT_LIMIT_S, CAST_LIMIT_S, NetbootRoom
from tests.support.machines.virtual_machine import BootOrder, Disk, Firmware, MachineSpec, VirtualMachine

pytestmark = pytest.mark.needs_root

_NEXT = {"bookworm": "trixie"}


def test_a_medium_of_the_next_release_images_a_machine_and_starts_its_disk(
    room: NetbootRoom, tmp_path: Path
) -> None:
    suite = _NEXT.get(this_suite())
    if suite is None:
        pytest.skip(f"no release of Debian after {this_suite()} is known here")
    sources = write_debian_sources(tmp_path / "next.sources", suite)
    medium = room.build_medium(
        tmp_path / "medium", "--cloud", "--quick", "--suite", suite, "--mirror", str(sources)
    )
    room.add_image(make_micro_image(tmp_path / "micro.raw", medium), suite)
    room.create_room(suite, {suite: 0})
    spec = MachineSpec(Firmware.UEFI, disks=(Disk.blank(tmp_path / "disk"),), boot_order=BootOrder.NETWORK)
    with room.start_boot_services(medium):
        with room.cast_to(suite, suite) as cast, VirtualMachine(room.network, 0, spec, name=suite) as machine:
            booted = machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)
            machine.console.wait_for(PROMPT, CAST_LIMIT_S, after=booted)
            assert cast.wait(CAST_LIMIT_S) == 0, cast.describe()
            print(machine.console.lines_with("diskcast: live system"))
        with VirtualMachine(room.network, 0, spec, name=f"{suite}-again") as machine:
            machine.console.wait_for(PROMPT, BOOT_LIMIT_S)
            assert AGENT_STARTED not in machine.console.text
    room.remove_room(suite)
