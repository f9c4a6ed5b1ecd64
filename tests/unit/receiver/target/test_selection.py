"""``--target`` selects exactly one disk or none: a machine with two disks never loses the wrong one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.errors import (
    AmbiguousTargetError,
    ConfigurationError,
    TargetError,
    TargetInUseError,
    TargetIsSystemDiskError,
    TargetTooSmallError,
)
from receiver.target.selection import DiskChoice, Rule, choose_target, parse_rule
from tests.support.network.fake_machine import GIB, FakeMachine
from tests.unit.receiver.disk.inventory.test_block_devices import USB_TREE
from tests.unit.sender.netboot.usb.test_stick import write_stick_head


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    """A typical machine: the system on SATA, a larger NVMe disk, a USB disk."""
    machine = FakeMachine(tmp_path)
    machine.disk(
        "sda",
        "8:0",
        size_bytes=240 * GIB,
        files={"device/model": "Samsung SSD 860", "device/serial": "S1", "device/wwid": "naa.5001"},
    )
    machine.partition("sda", 1, "8:1")
    machine.mount("8:1", "/")
    machine.disk(
        "nvme0n1",
        "259:0",
        size_bytes=500 * GIB,
        tree="pci0000:00/nvme/nvme0",
        files={"device/model": "Samsung SSD 980 PRO", "device/serial": "S2", "wwid": "eui.5002"},
    )
    machine.partition("nvme0n1", 1, "259:1", size_bytes=1 * GIB)
    machine.partition("nvme0n1", 2, "259:2", size_bytes=400 * GIB)
    machine.disk("sdb", "8:16", size_bytes=2000 * GIB, tree=USB_TREE, files={"device/model": "Backup+"})
    return machine


def _choose(machine: FakeMachine, text: str, *, partition: int | None = None, raw_bytes: int = 0) -> str:
    choice = choose_target(
        text, partition=partition, raw_bytes=raw_bytes, system_paths=machine.system_paths, probe=machine.probe
    )
    assert choice.identity == machine.device(choice.path.name).identity
    return choice.path.name


def _add_disk(machine: FakeMachine, name: str, minor: int, **facts: str) -> None:
    files = {f"device/{key}": value for key, value in facts.items()}
    machine.disk(name, f"8:{minor}", size_bytes=300 * GIB, files=files)


def test_auto_selects_the_only_disk_that_is_neither_removable_nor_in_use(machine: FakeMachine) -> None:
    assert _choose(machine, "auto") == "nvme0n1"


@pytest.mark.parametrize("selector", ["auto:removable,smallest", "auto:transport=usb", "model=Stick*"])
def test_the_stick_that_a_machine_was_booted_from_is_only_selected_by_path(
    machine: FakeMachine, selector: str
) -> None:
    """It is the smallest removable disk of a bare machine."""
    machine.disk("sdd", "8:48", size_bytes=GIB, tree=USB_TREE, files={"device/model": "Stick 1"})
    chosen = "sdb" if selector == "auto:transport=usb" else "sdd"
    if chosen == "sdd":
        assert _choose(machine, selector) == "sdd", "any other stick"
    write_stick_head(machine.device("sdd").path)
    if selector == "auto:transport=usb":
        assert _choose(machine, selector) == "sdb"
    elif selector.startswith("auto"):
        assert _choose(machine, selector) == "nvme0n1"
    else:
        with pytest.raises(TargetIsSystemDiskError, match=r"sdd is a boot stick of diskcast.*by its path"):
            _choose(machine, selector)


def test_auto_refuses_two(machine: FakeMachine) -> None:
    _add_disk(machine, "sdc", 32)
    with pytest.raises(
        AmbiguousTargetError, match=r"(?s)sdc.*name one.*sda, 240.*runs from.*sdb,.*removable: usable"
    ):
        _choose(machine, "auto")


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("auto:smallest", "sdc"),
        ("auto:largest", "nvme0n1"),
        ("auto:min=400G", "nvme0n1"),
        ("auto:max=400G", "sdc"),
        ("auto:min=250G,max=350G", "sdc"),
        ("auto:transport=nvme", "nvme0n1"),
        ("auto:transport=usb", "sdb"),
        ("auto:removable,largest", "sdb"),
        ("auto:smallest,min=301G", "nvme0n1"),
    ],
)
def test_rules(machine: FakeMachine, rule: str, name: str) -> None:
    _add_disk(machine, "sdc", 32)
    assert _choose(machine, rule) == name


def test_the_smallest_that_fits_is_large_enough(machine: FakeMachine) -> None:
    _add_disk(machine, "sdc", 32)
    assert _choose(machine, "auto:smallest", raw_bytes=301 * GIB) == "nvme0n1"


def test_two_equally_small_ones_are_ambiguous(machine: FakeMachine) -> None:
    _add_disk(machine, "sdc", 32)
    _add_disk(machine, "sdd", 48)
    with pytest.raises(AmbiguousTargetError, match="fits 2 disks"):
        _choose(machine, "auto:smallest")


@pytest.mark.parametrize("rule", ["auto:max=1G", "auto:transport=fc", "auto:min=3T,removable"])
def test_a_rule_that_nothing_fits(machine: FakeMachine, rule: str) -> None:
    with pytest.raises(TargetError, match=r"(?s)no disk fits.*nvme0n1.*usable"):
        _choose(machine, rule)


def test_auto_selects_loop_devices_only_on_request(machine: FakeMachine) -> None:
    machine.loop("loop0", "7:0", "/srv/disk.raw")
    assert _choose(machine, "auto") == "nvme0n1"
    assert _choose(machine, "auto:transport=loop") == "loop0"


@pytest.mark.parametrize("text", ["auto:biggest", "auto:min", "auto:min=x", "auto:size=3"])
def test_a_rule_that_is_none_is_not_guessed_at(machine: FakeMachine, text: str) -> None:
    with pytest.raises(ConfigurationError, match="write"):
        _choose(machine, text)


def test_an_empty_rule_is_auto() -> None:
    assert parse_rule("auto:") == parse_rule("auto") == Rule()


@pytest.mark.parametrize(
    "text",
    [
        "serial=S2",
        "serial=s2",
        "wwn=eui.5002",
        "wwn=0x5002",
        "wwn=5002",
        "model=samsung ssd 980*",
        "model=*980?PRO",
    ],
)
def test_selection_by_serial_wwn_and_model(machine: FakeMachine, text: str) -> None:
    assert _choose(machine, text) == "nvme0n1"


@pytest.mark.parametrize("text", ["serial=S", "serial=", "wwn=", "model=samsung", "model=", "serial=*"])
def test_nothing_is_guessed_from_a_part_of_a_name(machine: FakeMachine, text: str) -> None:
    with pytest.raises(TargetError, match=r"(?s)no disk has.*serial S2: usable"):
        _choose(machine, text)


def test_the_only_disk_of_that_name_is_refused_with_its_reason(machine: FakeMachine) -> None:
    with pytest.raises(TargetIsSystemDiskError, match=r"/ is on it"):
        _choose(machine, "serial=S1")


def test_a_model_of_which_one_is_in_use_means_the_other(machine: FakeMachine) -> None:
    assert _choose(machine, "model=Samsung*") == "nvme0n1"


def test_two_disks_of_one_serial_are_ambiguous_even_if_one_is_refused(machine: FakeMachine) -> None:
    """The operator may have meant the disk in use: the other one isn't taken instead."""
    _add_disk(machine, "sdc", 32, serial="S1")
    with pytest.raises(AmbiguousTargetError, match=r"sda, .*sdc"):
        _choose(machine, "serial=S1")


def test_a_disk_that_is_too_small_has_its_own_error(machine: FakeMachine) -> None:
    with pytest.raises(TargetTooSmallError):
        _choose(machine, "serial=S2", raw_bytes=501 * GIB)


def test_a_partition_of_the_chosen_disk(machine: FakeMachine) -> None:
    assert _choose(machine, "serial=S2", partition=2, raw_bytes=300 * GIB) == "nvme0n1p2"
    assert _choose(machine, "auto", partition=2, raw_bytes=300 * GIB) == "nvme0n1p2"
    with pytest.raises(TargetTooSmallError):
        _choose(machine, "serial=S2", partition=1, raw_bytes=300 * GIB)
    with pytest.raises(TargetError, match=r"no partition 3 \(existing ones: 1, 2\)"):
        _choose(machine, "serial=S2", partition=3)


def test_a_mounted_partition_is_refused(machine: FakeMachine) -> None:
    machine.mount("259:2", "/data")
    with pytest.raises(TargetInUseError, match="/data"):
        _choose(machine, "serial=S2", partition=2)


@pytest.mark.parametrize("text", ["/dev/sda", "disk.raw", "./auto", "/dev/disk/by-id/ata-model=x"])
def test_a_path_is_taken_as_it_is(machine: FakeMachine, text: str) -> None:
    assert choose_target(text, partition=None, raw_bytes=1, system_paths=machine.system_paths) == DiskChoice(
        Path(text), None
    )


@pytest.mark.parametrize("text", ["serail=S2", "Serial=S2", "auto=smallest", "smallest:auto", "size=3G"])
def test_a_misspelt_selector_does_not_become_a_file(machine: FakeMachine, text: str) -> None:
    with pytest.raises(ConfigurationError, match="neither an existing file nor a selector"):
        choose_target(text, partition=None, raw_bytes=0, system_paths=machine.system_paths)


def test_a_file_that_looks_like_a_selector_is_a_file(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk=1.raw").touch()
    for text in ("disk=1.raw", "./disk=2.raw"):
        assert choose_target(
            text, partition=None, raw_bytes=0, system_paths=machine.system_paths
        ).path == Path(text)


def test_a_partition_of_a_file_is_refused(machine: FakeMachine, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.touch()
    for each in (path, tmp_path / "missing", Path(os.devnull)):
        with pytest.raises(TargetError, match=f"{each}.*nothing was written"):
            choose_target(str(each), partition=1, raw_bytes=0, system_paths=machine.system_paths)


def test_a_machine_without_disks(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    with pytest.raises(TargetError, match=r"(?s)no disk fits.*none"):
        _choose(machine, "auto")


def test_an_optical_drive_is_not_among_the_disks_to_choose(machine: FakeMachine) -> None:
    machine.disk("sr0", "11:0", size_bytes=GIB)
    with pytest.raises(TargetError, match="The disks of this machine") as caught:
        _choose(machine, "serial=none")
    assert "sr0" not in str(caught.value)
    assert "sda" in str(caught.value)
