"""A boot stick's structure: partition table and GRUB's menu."""

from __future__ import annotations

import subprocess
from pathlib import Path

from protocol.constants import BOOT_STICK_LABEL
from protocol.control.boot_parameters import LiveMode
from receiver.disk.inventory.disk_contents import read_contents
from sender.netboot.usb.grub_text import StickMenu
from sender.netboot.usb.stick import _make_fat, master_boot_record
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


def write_stick_head(image: Path) -> None:
    """Write what identifies a stick: its partition table and its filesystem."""
    start_bytes, fat_bytes = 1 << 20, 40 << 20
    with image.open("wb") as file:
        file.write(master_boot_record(bytes(440), start_bytes // 512, fat_bytes // 512, 1))
        file.truncate(start_bytes + fat_bytes)
    _make_fat(image, start_bytes, fat_bytes, 1)


def test_the_agent_recognises_a_stick_and_offers_it_as_no_target(tmp_path: Path) -> None:
    """A technician in the menu would overwrite the stick that the machine was started from."""
    require_program("mkfs.vfat")
    image = tmp_path / "stick"
    write_stick_head(image)
    contents = read_contents(image, image.stat().st_size, 512)
    assert contents.is_boot_stick
    assert contents.text == "a boot stick of diskcast"
    with image.open("r+b") as file:
        file.seek((1 << 20) + 71)
        file.write(b"HOLIDAYS   ")
    assert not read_contents(image, image.stat().st_size, 512).is_boot_stick


def test_the_agent_recognises_a_disc_on_a_stick(tmp_path: Path) -> None:
    xorriso = require_program("xorriso")
    image = tmp_path / "stick.iso"
    for label, expected in ((BOOT_STICK_LABEL, True), ("HOLIDAYS", False)):
        command = [xorriso, "-as", "mkisofs", "-quiet", "-V", label, "-o", image, Path(__file__).parent]
        subprocess.run(command, check=True, capture_output=True)
        assert read_contents(image, image.stat().st_size, 512).is_boot_stick is expected


def test_the_default_entry_comes_first_and_checks_the_root_filesystem() -> None:
    text = StickMenu(LiveMode.RUN, ("initrd", "firmware"), "ab" * 32).configuration()
    entries = [line for line in text.splitlines() if line.startswith("menuentry")]
    assert "wait for a cast" in entries[0]
    assert "image this machine" in entries[1]
    assert text.count(f"diskcast.sha256={'ab' * 32}") == 2
    assert text.count("diskcast.mode=menu") == 1, "run is the default of the kernel command line"
    assert "initrd /diskcast/initrd /diskcast/firmware\n" in text
