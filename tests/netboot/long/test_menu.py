"""The menu for one machine in the live system: a technician at the serial console, a daemon, and a bare disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protocol.control.boot_parameters import AfterCast, BootParameters, LiveMode, format_boot_parameters
from tests.support.machines.direct_boot import direct_boot
from tests.support.machines.micro_image import PROMPT
from tests.support.machines.netboot_room import BOOT_LIMIT_S, CAST_LIMIT_S, SERVER_URL, NetbootRoom
from tests.support.machines.serial_console import SerialConsole
from tests.support.machines.virtual_machine import Disk, MachineSpec, VirtualMachine, mac_of

pytestmark = pytest.mark.needs_root

_SERIAL = "MENU-0001"
_ANSWER_LIMIT_S = 60.0


class _Technician:
    """A person at the serial console of a machine."""

    def __init__(self, console: SerialConsole) -> None:
        self._console = console
        self._seen = 0

    def sees(self, text: str, timeout_s: float = _ANSWER_LIMIT_S) -> None:
        """Wait until the console shows ``text`` after the last one."""
        self._seen = self._console.wait_for(text, timeout_s, after=self._seen)

    def types(self, text: str) -> None:
        """Type a line."""
        self._console.type(f"{text}\r")

    def chooses(self, entry: str, timeout_s: float = _ANSWER_LIMIT_S) -> None:
        """Choose the entry of the next list that contains ``entry``."""
        start = self._seen
        self.sees(entry, timeout_s)
        [*_, number] = re.findall(r"\n +(\d+)  ", self._console.text[start : self._seen])
        self.sees("Number (")
        self.types(number)


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
    token = (room.folder / "state/diskcast/operator-token").read_text().strip()
    spec = MachineSpec(disks=(disk,), extra=direct_boot(medium, words))
    with VirtualMachine(room.network, 0, spec, name="menu") as machine:
        technician = _Technician(machine.console)
        technician.chooses("from the daemon at", BOOT_LIMIT_S)
        technician.chooses("Type an operator's token")
        technician.sees("Token:")
        technician.types(token)
        technician.chooses(f"{micro}, ")
        technician.sees("Type the serial number of /dev/vda")
        technician.types("MENU-0002")
        technician.sees("Nothing was written")
        assert disk.is_blank

        technician.chooses("from the daemon at")
        technician.chooses("Type an operator's token")
        technician.sees("Token:")
        technician.types(token)
        technician.chooses(f"{micro}, ")
        technician.sees("Type the serial number of /dev/vda")
        technician.types(_SERIAL)
        technician.sees("every byte read back and verified", CAST_LIMIT_S)
        technician.sees("powers off in")
        machine.wait_off(_ANSWER_LIMIT_S)
        assert token not in machine.console.text
    with VirtualMachine(room.network, 0, MachineSpec(disks=(disk,)), name="menu-restored") as restored:
        restored.console.wait_for(PROMPT, BOOT_LIMIT_S)
