"""Media with image files: which are looked at, how they are mounted, and which files are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from receiver.live.menu.media import FILES_MAX, image_files, media_of, mount_argv
from tests.support.disks.disk_layouts import gpt_entry, put_filesystem, put_gpt
from tests.support.network.fake_machine import FakeMachine

MIB = 1 << 20


def stick(machine: FakeMachine, name: str, number: str, *, removable: bool = True) -> bytearray:
    """Add a disk with two partitions: FAT and ext4."""
    machine.disk(name, number, size_bytes=4 * MIB, files={"removable": str(int(removable))})
    major, minor = number.split(":")
    for partition in (1, 2):
        machine.partition(name, partition, f"{major}:{int(minor) + partition}")
    content = bytearray(4 * MIB)
    put_gpt(content, [gpt_entry(2048, 4095), gpt_entry(4096, 6143)])
    put_filesystem(content, 2048 * 512, "vfat")
    put_filesystem(content, 4096 * 512, "ext4")
    Path(machine.node(name)).write_bytes(content)
    return content


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def test_partitions_of_removable_disks_are_looked_at(machine: FakeMachine) -> None:
    stick(machine, "sdb", "8:16")
    stick(machine, "sda", "8:0", removable=False)
    found = media_of(machine.inventory())
    assert [(device.name, kind) for device, kind in found] == [("sdb1", "vfat"), ("sdb2", "ext4")]


def test_a_medium_in_use_is_left_alone(machine: FakeMachine) -> None:
    stick(machine, "sdb", "8:16")
    machine.mount("8:17", "/mnt")
    assert media_of(machine.inventory()) == []


@pytest.mark.parametrize(
    ("filesystem", "kind", "options"),
    [
        ("vfat", "vfat", "ro,nosuid,nodev,noexec"),
        ("ntfs", "ntfs3", "ro,nosuid,nodev,noexec"),
        ("ext4", "ext4", "ro,nosuid,nodev,noexec,noload"),
        ("xfs", "xfs", "ro,nosuid,nodev,noexec,norecovery"),
        ("btrfs", "btrfs", "ro,nosuid,nodev,noexec,rescue=nologreplay"),
    ],
)
def test_mounting_writes_nothing_not_even_a_journal(
    machine: FakeMachine, filesystem: str, kind: str, options: str
) -> None:
    machine.disk("sdb", "8:16")
    device = machine.device("sdb")
    argv = mount_argv(device, filesystem, Path("/run/x"))
    assert argv == ["mount", "-t", kind, "-o", options, device.path, Path("/run/x")]


def test_image_files_are_found_in_the_usual_folders(tmp_path: Path) -> None:
    for name in ("b.dci", "diskcast/a.DCI", "images/c.dci", "other/d.dci", "notes.txt", "diskcast/e.dci/x"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    found = image_files([(tmp_path, "the stick"), (tmp_path / "missing", "nothing")])
    assert [entry.path.relative_to(tmp_path).as_posix() for entry in found] == [
        "b.dci", "diskcast/a.DCI", "images/c.dci",
    ]  # fmt: skip
    assert {(entry.size_bytes, entry.place) for entry in found} == {(5, "the stick")}


def test_a_medium_full_of_images_is_cut(tmp_path: Path) -> None:
    for number in range(FILES_MAX + 5):
        (tmp_path / f"{number:04}.dci").touch()
    assert len(image_files([(tmp_path, "x")])) == FILES_MAX
