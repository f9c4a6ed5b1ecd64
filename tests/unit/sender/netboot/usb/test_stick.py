"""A boot stick's structure: partition table and GRUB's menu."""

from __future__ import annotations

import subprocess
from pathlib import Path

from protocol.control.boot_parameters import LiveMode
from sender.netboot.usb.grub_text import StickMenu
from sender.netboot.usb.stick import master_boot_record
from tests.support.programs.processes import require_program


def test_sfdisk_reads_the_partition_table(tmp_path: Path) -> None:
    image = tmp_path / "stick"
    with image.open("wb") as file:
        file.write(master_boot_record(b"\xeb\x63" + bytes(600), 2048, 8192, 0x12345678))
        file.truncate(16 << 20)
    command = [require_program("sfdisk"), "--dump", image]
    dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "label-id: 0x12345678" in dump
    [row] = [line for line in dump.splitlines() if "start=" in line]
    assert "".join(row.partition(" : ")[2].split()) == "start=2048,size=8192,type=ef,bootable"


def test_the_default_entry_comes_first_and_checks_the_root_filesystem() -> None:
    text = StickMenu(LiveMode.RUN, ("initrd", "firmware"), "ab" * 32).configuration()
    entries = [line for line in text.splitlines() if line.startswith("menuentry")]
    assert "wait for a cast" in entries[0]
    assert "image this machine" in entries[1]
    assert text.count(f"diskcast.sha256={'ab' * 32}") == 2
    assert text.count("diskcast.mode=menu") == 1, "run is the default of the kernel command line"
    assert "initrd /diskcast/initrd /diskcast/firmware\n" in text
