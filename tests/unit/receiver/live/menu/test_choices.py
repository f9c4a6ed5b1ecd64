"""Numbers and serial numbers that a technician types: only the right ones count."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from receiver.disk.inventory.block_devices import BlockDevice
from receiver.disk.inventory.disk_contents import DiskContents
from receiver.live.menu.choices import (
    COLUMNS,
    Row,
    confirmation_prompt,
    confirms,
    disk_rows,
    numbered,
    parse_choice,
    selector_of,
)
from receiver.restore.listed_disks import ListedDisk
from receiver.target.eligibility import ImageNeeds, judge
from tests.support.network.fake_machine import FakeMachine


def disk(tmp_path: Path, *serials: str, name: str = "sda") -> BlockDevice:
    machine = FakeMachine(tmp_path / name)
    machine.disk(name, "8:0")
    device = machine.device(name)
    return dataclasses.replace(
        device, path=Path("/dev", name), identity=dataclasses.replace(device.identity, serials=serials)
    )


@pytest.mark.parametrize("typed", ["S64ANS0T", "s64ans0t", " S64ANS0T ", "S64 ANS0T", "WD-1"])
def test_any_of_the_serial_numbers_confirms(tmp_path: Path, typed: str) -> None:
    assert confirms(disk(tmp_path, "S64ANS0T", "WD-1"), typed)


@pytest.mark.parametrize("typed", ["", "S64ANS0", "S64ANS0TX", "sda", "/dev/sda", "y", "yes", "*"])
def test_nothing_else_confirms(tmp_path: Path, typed: str) -> None:
    """A habitual "y" or Enter must not erase a disk."""
    assert not confirms(disk(tmp_path, "S64ANS0T"), typed)


def test_a_disk_without_a_serial_number_is_confirmed_by_its_name(tmp_path: Path) -> None:
    plain = disk(tmp_path)
    assert "Type its name, sda" in confirmation_prompt(plain)
    assert confirms(plain, "sda")
    assert confirms(plain, "/dev/sda")
    for typed in ("", "sdb", "sda1", "y"):
        assert not confirms(plain, typed)


def test_the_confirmed_disk_is_meant_even_if_its_name_changes(tmp_path: Path) -> None:
    one, twin, plain = disk(tmp_path, "S1"), disk(tmp_path, "S2", name="sdb"), disk(tmp_path, name="sdc")
    listed = [ListedDisk(each, DiskContents("x"), None) for each in (one, twin, plain)]
    assert selector_of(one, listed) == "serial=S1"
    assert selector_of(plain, listed) == "/dev/sdc"
    same = [*listed, ListedDisk(disk(tmp_path, "S1", name="sdd"), DiskContents("x"), None)]
    assert selector_of(one, same) == "/dev/sda", "a serial number of two disks would be ambiguous"


def test_a_list_fits_the_console_and_names_content_and_refusal(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.disk("sda", "8:0")
    machine.mount("8:0", "/mnt")
    refusal = judge(machine.device("sda"), machine.inventory(), ImageNeeds(), probe=machine.probe)
    assert refusal is not None
    text = numbered(disk_rows([ListedDisk(machine.device("sda"), DiskContents("GPT: ext4"), refusal)]))
    assert "holds GPT: ext4" in text
    assert "can't be used: is in use: mounted at /mnt" in text
    long = numbered([Row("x" * 200, ("y" * 200,))])
    assert all(len(line) == COLUMNS and line.endswith("...") for line in long.splitlines())


@pytest.mark.parametrize(
    ("text", "index"),
    [("1", 0), ("3", 2), ("0", None), ("4", None), ("", None), ("-1", None), ("²", None), ("1e", None)],
)
def test_only_numbers_of_the_list_are_choices(text: str, index: int | None) -> None:
    assert parse_choice(text, 3) == index
