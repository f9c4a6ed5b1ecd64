"""``--efi-entry`` and ``--grow`` in the live system: the new disk starts once, and the boot order stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.machines.firmware_variables import BootVariables
from tests.support.machines.micro_image import PROMPT
from tests.support.machines.netboot_room import (
    AGENT_STARTED,
    BOOT_LIMIT_S,
    CAST_LIMIT_S,
    NetbootRoom,
)
from tests.support.machines.virtual_machine import BootOrder, Disk, Firmware, MachineSpec, VirtualMachine
from tests.support.network.lab import run
from tests.support.programs.processes import require_program

pytestmark = pytest.mark.needs_root

_LABEL = "lab-system"
_DISK_BYTES = 3 << 30
_FROM_NETWORK = "/boot.ipxe"
"""Text on the console of a machine that asks the boot services."""


def test_a_boot_entry_starts_the_grown_disk_once_and_keeps_the_boot_order(
    room: NetbootRoom, medium: Path, micro: str, tmp_path: Path
) -> None:
    disk = Disk.blank(tmp_path / "disk", _DISK_BYTES)
    once = MachineSpec(
        Firmware.UEFI, disks=(disk,), boot_order=BootOrder.NETWORK, extra=("-no-reboot",)
    )  # its restart ends QEMU, so that the firmware's variables are as the agent left them
    again = MachineSpec(Firmware.UEFI, disks=(disk,), boot_order=BootOrder.NETWORK)
    room.create_room("entry", {"entry": 0})
    words = (f"diskcast.efi-entry={_LABEL}", "diskcast.grow=yes")
    with room.start_boot_services(medium, words=words):
        with (
            room.cast_to(micro, "entry") as cast,
            VirtualMachine(room.network, 0, once, name="entry") as machine,
        ):
            machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)
            machine.wait_off(CAST_LIMIT_S)
            assert cast.wait(CAST_LIMIT_S) == 0, cast.describe()
            print(*machine.console.lines_with("diskcast: "), sep="\n")
            left = BootVariables.read(machine.variables)
        print(left)
        (number,) = [number for number, label in left.labels.items() if label == _LABEL]
        assert left.next == number
        assert left.order[-1] == number
        assert "PXE" in left.labels[left.order[0]], "the network stays first"
        _check_growth(disk)

        with VirtualMachine(room.network, 0, again, name="entry", keep_variables=True) as machine:
            machine.console.wait_for(PROMPT, BOOT_LIMIT_S)
            assert _FROM_NETWORK not in machine.console.text, "the next boot is from the disk"
            booted = BootVariables.read(machine.variables)
        assert booted.next is None
        with VirtualMachine(room.network, 0, again, name="entry", keep_variables=True) as machine:
            machine.console.wait_for(PROMPT, BOOT_LIMIT_S)
            assert _FROM_NETWORK in machine.console.text, "later ones ask the boot services first"
            assert AGENT_STARTED not in machine.console.text
    room.remove_room("entry")


def _check_growth(disk: Disk) -> None:
    """Check that the last partition ends with the disk, and that its filesystem fills it and is clean."""
    table = json.loads(run(require_program("sfdisk"), "--json", disk.path))["partitiontable"]
    last = table["partitions"][-1]
    assert (last["start"] + last["size"]) * 512 > _DISK_BYTES - (2 << 20), table
    filesystem = disk.path.with_name("filesystem")
    run("dd", f"if={disk.path}", f"of={filesystem}", "bs=1M", f"skip={last['start'] // 2048}", "conv=sparse")
    run(require_program("e2fsck"), "-f", "-n", filesystem)
    header = run(require_program("dumpe2fs"), "-h", filesystem)
    fields = dict(line.split(":", 1) for line in header.splitlines() if ":" in line)
    size_bytes = int(fields["Block count"]) * int(fields["Block size"])
    assert size_bytes > last["size"] * 512 * 0.99, header
