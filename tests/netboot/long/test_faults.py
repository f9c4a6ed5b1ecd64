"""Faults of a boot: each one is named by one line on the serial console, and the disk stays untouched.

QEMU loads the kernel itself: what precedes it makes no difference here, and firmware takes a third of a boot.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.control.boot_parameters import BootParameters, format_boot_parameters
from receiver.live import messages
from receiver.live.messages import CONSOLE_PREFIX, BootMessage
from tests.support.machines.direct_boot import direct_boot
from tests.support.machines.netboot_room import AGENT_STARTED, BOOT_LIMIT_S, SERVER_URL, NetbootRoom
from tests.support.machines.virtual_machine import Disk, MachineSpec, VirtualMachine, mac_of
from tests.support.network.lab import LabError, wait_until

pytestmark = pytest.mark.needs_root

_OTHER_PIN = "a" * 52


def _flip_bit(initrd: Path) -> None:
    """Change one bit in the middle of the squashfs, which is most of the initrd."""
    with initrd.open("r+b") as file:
        file.seek(initrd.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def _cut(initrd: Path) -> None:
    """Keep three quarters, as a broken download would."""
    os.truncate(initrd, initrd.stat().st_size * 3 // 4)


def _nothing(_initrd: Path) -> None:
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and the message that names it.

    Attributes:
        message: the kind of the expected line.
        damage: what happened to the initrd on its way.
        changes: differences of the machine.
        parameters: differences of the boot parameters.
    """

    message: BootMessage
    damage: Callable[[Path], None] = _nothing
    changes: dict[str, object] = dataclasses.field(default_factory=dict)
    parameters: dict[str, object] = dataclasses.field(default_factory=dict)


FAULTS = {
    "a bit flipped in the squashfs": Fault(messages.ROOT_DAMAGED, _flip_bit),
    "a truncated download": Fault(messages.ROOT_CUT, _cut),
    "an old processor": Fault(messages.OLD_PROCESSOR, changes={"processor": "core2duo"}),
    "256 MB of memory": Fault(messages.TOO_LITTLE_MEMORY, changes={"memory_mib": 256}),
    "a network card without a driver": Fault(messages.NO_NETWORK_DRIVER, changes={"card": "rtl8139"}),
    "no network card": Fault(messages.NO_CARD, changes={"card": ""}),
    "a pin that wasn't built in": Fault(messages.FOREIGN_PIN, parameters={"pins": (_OTHER_PIN,)}),
    "no boot token": Fault(messages.NO_TOKEN),
    "a boot token that isn't valid any more": Fault(
        messages.NOT_ADMITTED, parameters={"boot_token": "dcb_" + "a" * 43}
    ),
    "no daemon": Fault(messages.NO_DAEMON, parameters={"servers": ("https://10.99.0.77:7400",)}),
}


def _parameters(room: NetbootRoom, **changes: object) -> str:
    usual = BootParameters(servers=(SERVER_URL,), pins=(room.pin,), boot_mac=mac_of(0))
    return format_boot_parameters(dataclasses.replace(usual, **changes))  # type: ignore[arg-type]


def _expect(machine: VirtualMachine, message: BootMessage) -> str:
    """Wait for a line of this kind, and return it."""

    def lines() -> list[str]:
        if not machine.running:
            raise LabError(f"{machine.name} ended: {machine.console.describe()}")
        texts = (line.removeprefix(CONSOLE_PREFIX) for line in machine.console.lines_with(CONSOLE_PREFIX))
        return [text for text in texts if message.matches(text)]

    return wait_until(message.template, lines, BOOT_LIMIT_S, describe=machine.console.describe)[0]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_nothing_is_written(
    name: str, room: NetbootRoom, medium: Path, tmp_path: Path
) -> None:
    fault = FAULTS[name]
    initrd = tmp_path / "initrd"
    shutil.copy(medium / "initrd", initrd)
    fault.damage(initrd)
    disk = Disk.blank(tmp_path / "disk")
    options = direct_boot(medium, _parameters(room, **fault.parameters), initrd=initrd)
    spec = dataclasses.replace(MachineSpec(disks=(disk,), extra=options), **fault.changes)  # type: ignore[arg-type]
    with VirtualMachine(room.network, 0, spec, name=name.replace(" ", "-")) as machine:
        print(f"{name}: {_expect(machine, fault.message)}")
        if fault.message.fatal:
            machine.console.wait_for("nothing was written", BOOT_LIMIT_S)
    assert disk.is_blank


def test_no_dhcp_server_is_named(room: NetbootRoom, medium: Path, tmp_path: Path) -> None:
    disk = Disk.blank(tmp_path / "disk")
    spec = MachineSpec(disks=(disk,), extra=direct_boot(medium, _parameters(room)))
    room.network.take_off_bridge(0)
    try:
        with VirtualMachine(room.network, 0, spec, name="no-dhcp") as machine:
            print(_expect(machine, messages.NO_DHCP))
            machine.console.wait_for("nothing was written", BOOT_LIMIT_S)
    finally:
        room.network.put_on_bridge(0)
    assert disk.is_blank


def test_a_pin_of_another_daemon_is_named(room: NetbootRoom, tmp_path: Path) -> None:
    """The medium was built for another daemon; this one has another certificate."""
    foreign = room.build_medium(tmp_path / "medium", "--cloud", "--quick", "--pin", _OTHER_PIN)
    disk = Disk.blank(tmp_path / "disk")
    spec = MachineSpec(disks=(disk,), extra=direct_boot(foreign, _parameters(room, pins=())))
    with VirtualMachine(room.network, 0, spec, name="other-daemon") as machine:
        print(_expect(machine, messages.WRONG_PIN))
        machine.console.wait_for("nothing was written", BOOT_LIMIT_S)
    assert disk.is_blank


def test_two_disks_are_listed_and_none_is_written(
    room: NetbootRoom, medium: Path, micro: str, tmp_path: Path
) -> None:
    disks = (Disk.blank(tmp_path / "first"), Disk.blank(tmp_path / "second"))
    room.create_room("disks", {"two-disks": 0})
    with (
        room.start_boot_services(medium),
        room.cast_to(micro, "disks"),
        VirtualMachine(room.network, 0, MachineSpec(disks=disks), name="two-disks") as machine,
    ):
        started = machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)
        for disk_name in ("/dev/vda", "/dev/vdb"):
            machine.console.wait_for(disk_name, BOOT_LIMIT_S, after=started)
    assert all(disk.is_blank for disk in disks)
