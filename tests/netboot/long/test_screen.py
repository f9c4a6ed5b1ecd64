"""The live system on a VGA screen. Lost if this fails: people in front of a machine don't know what it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.machines.direct_boot import direct_boot
from tests.support.machines.netboot_room import BOOT_LIMIT_S, NetbootRoom
from tests.support.machines.vga_screen import VgaScreen
from tests.support.machines.virtual_machine import Disk, MachineSpec, VirtualMachine

pytestmark = pytest.mark.needs_root


def test_the_screen_shows_error_cause_and_fix_and_the_serial_console_plain_lines(
    room: NetbootRoom, medium: Path, tmp_path: Path
) -> None:
    screen = VgaScreen(tmp_path)
    options = (*direct_boot(medium, "console=tty0"), *screen.options)
    spec = MachineSpec(disks=(Disk.blank(tmp_path / "disk"),), card="", extra=options)
    with VirtualMachine(room.network, 0, spec, name="screen") as machine:
        machine.console.wait_for("diskcast: no network card", BOOT_LIMIT_S)
        rows = screen.wait_for("This machine can't be imaged", BOOT_LIMIT_S)
        text = "\n".join(rows)
        print(text)
        assert rows[0].startswith("  diskcast")
        assert "██████████" in text, "FAILED in large letters"
        for label in ("Error       no network card", "Cause", "Fix", "Nothing was written; restart in 60 s"):
            assert label in text
        assert "\x1b[" not in "".join(machine.console.lines_with("diskcast: no network card"))
