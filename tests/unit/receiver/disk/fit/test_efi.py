"""Firmware boot entries: parsing and commands of efibootmgr, boot order, loader names."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.disk.partition_table import Partition
from protocol.errors import ConfigurationError
from receiver.disk.fit import efi
from receiver.disk.fit.efi import (
    BootEntries,
    BootEntry,
    WantedEntry,
    create_argv,
    delete_argv,
    has_entry,
    loader_name,
    new_order,
    order_argv,
    parse_entries,
)

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
DISK = Path("/proc/12/fd/7")


GUID = "2191e1b3-de22-f643-9be8-c2de5e6ec5fd"

VERSION_17 = rf"""BootCurrent: 0003
Timeout: 1 seconds
BootOrder: 0003,0001,0000
Boot0000* UEFI: Built-in EFI Shell	VenMedia(5023b95c-db26-429b-a648-bd47664c8012)..BO
Boot0001* My lab	HD(1,GPT,{GUID},0x800,0x8000)/File(\EFI\BOOT\BOOTX64.EFI)
Boot0002  Floppy	BBS(Floppy,,0x0)
Boot0003* UEFI: PXE IPv4 Intel(R)	PciRoot(0x0)/Pci(0x1f,0x6)/MAC(525400123456,0)/IPv4(0.0.0.0:0<->0.0.0.0:0,0,0)..BO
"""
r"""Version 17 (Debian 12), ``--verbose``."""

VERSION_18 = rf"""BootCurrent: 0003
Timeout: 1 seconds
BootOrder: 0003,0001
Boot0001* My lab	HD(1,GPT,{GUID},0x800,0x8000)/\EFI\BOOT\BOOTX64.EFI
      dp: 04 01 2a 00 01 00 00 00 00 08 00 00 00 00 00 00 00 80 00 00 00 00 00 00
    data: 00
Boot0003* UEFI: PXE IPv4 Intel(R)	PciRoot(0x0)/Pci(0x1f,0x6)/MAC(525400123456,0)
"""
r"""Version 18, which leaves ``File()`` out and adds the raw path."""

WANTED = WantedEntry(
    "My lab", Partition(1, MIB, 16 * MIB, ESP, filesystem="vfat"), GUID.upper(), r"\EFI\BOOT\BOOTX64.EFI", 512
)


@pytest.mark.parametrize("output", [VERSION_17, VERSION_18])
def test_an_existing_entry_is_recognised(output: str) -> None:
    listing = parse_entries(output)
    assert listing.order[:2] == ("0003", "0001")
    entry = next(entry for entry in listing.entries if entry.number == "0001")
    assert (entry.label, entry.active) == ("My lab", True)
    assert has_entry(WANTED, listing)


def test_labels_and_inactive_entries_are_read_as_they_are() -> None:
    entries = parse_entries(VERSION_17).entries
    assert [entry.label for entry in entries] == [
        "UEFI: Built-in EFI Shell", "My lab", "Floppy", "UEFI: PXE IPv4 Intel(R)",
    ]  # fmt: skip
    assert [entry.active for entry in entries] == [True, True, False, True]


def test_firmware_without_any_entry() -> None:
    assert parse_entries("No BootOrder is set; firmware will attempt recovery\n") == BootEntries((), ())


@pytest.mark.parametrize(
    "change",
    [
        ("BootOrder: 0003,0001,0000", "BootOrder: 0003,0000"),
        ("Boot0001* ", "Boot0001  "),
        (GUID, GUID.replace("2", "3")),
        ("0x800,0x8000", "0x800,0x9000"),
        ("HD(1,", "HD(2,"),
        ("BOOTX64", "SHIMX64"),
        ("Boot0002  Floppy", "Boot0002* My lab"),
    ],
)
def test_an_entry_that_boots_something_else_or_nothing_is_replaced(change: tuple[str, str]) -> None:
    assert change[0] in VERSION_17
    assert not has_entry(WANTED, parse_entries(VERSION_17.replace(*change)))


def test_an_entry_of_an_mbr_is_always_replaced() -> None:
    """An MBR's signature doesn't distinguish the partitions of cloned disks."""
    wanted = WantedEntry(WANTED.label, WANTED.partition, "", WANTED.loader, 512)
    assert not has_entry(wanted, parse_entries(VERSION_17))


def test_efibootmgr_gets_disk_partition_label_and_loader_without_a_shell() -> None:
    assert create_argv(DISK, WANTED) == [
        "efibootmgr", "--create", "--disk", "/proc/12/fd/7", "--part", "1", "--label", "My lab",
        "--loader", r"\EFI\BOOT\BOOTX64.EFI",
    ]  # fmt: skip
    assert delete_argv("00A1") == ["efibootmgr", "--bootnum", "00A1", "--delete-bootnum"]
    assert order_argv(("0003", "0001")) == ["efibootmgr", "--bootorder", "0003,0001"]


def _entries(labels: dict[str, str], *order: str) -> BootEntries:
    return BootEntries(tuple(BootEntry(number, True, label, "") for number, label in labels.items()), order)


def test_a_replaced_entry_keeps_its_place_behind_the_network() -> None:
    before = _entries(
        {"0001": "net", "0002": "lab", "0003": "lab", "0004": "cd"}, "0001", "0002", "0004", "0003"
    )
    after = _entries({"0001": "net", "0005": "lab", "0004": "cd"}, "0005", "0001", "0004")
    assert new_order(before, after, "lab") == ("0001", "0005", "0004")


def test_a_new_entry_stays_where_efibootmgr_puts_it() -> None:
    before = _entries({"0001": "net"}, "0001")
    assert new_order(before, _entries({"0001": "net", "0002": "lab"}, "0002", "0001"), "lab") is None


def test_a_new_entry_can_stay_behind_the_network() -> None:
    """With ``--bootnext`` a room's machines continue to ask the network first."""
    before = parse_entries(VERSION_18)
    entry = BootEntry("0007", True, "lab", "")
    after = BootEntries((*before.entries, entry), ("0007", "0003", "0001"))
    assert new_order(before, after, "lab", last=True) == ("0003", "0001", "0007")
    assert new_order(before, BootEntries(after.entries, ("0003", "0001", "0007")), "lab", last=True) is None


def test_an_order_that_is_right_is_not_written_again() -> None:
    before = _entries({"0001": "lab", "0002": "net"}, "0001", "0002")
    assert new_order(before, _entries({"0002": "net", "0003": "lab"}, "0003", "0002"), "lab") is None


def test_the_loader_is_the_one_this_kind_of_firmware_looks_for() -> None:
    assert loader_name("x86_64", 64) == "BOOTX64.EFI"
    assert loader_name("x86_64", 32) == "BOOTIA32.EFI"
    assert loader_name("aarch64", 64) == "BOOTAA64.EFI"
    with pytest.raises(ConfigurationError, match="vax"):
        loader_name("vax", 32)


@pytest.mark.parametrize("label", ["", " ", "two\nlines", "tab\there", "x" * 65, " padded"])
def test_a_label_that_no_firmware_could_show_is_refused(label: str) -> None:
    with pytest.raises(ConfigurationError, match="label"):
        efi.check_label(label)


def test_unreachable_firmware_variables_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efi, "FIRMWARE", tmp_path)
    (tmp_path / "efivars").mkdir()
    with pytest.raises(ConfigurationError, match="mount -t efivarfs"):
        efi.check_firmware()
