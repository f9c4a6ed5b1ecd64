"""Fitting images to larger disks with the real tools: GPT backup, grown partitions and filesystems, boot entries.

The disk is claimed by its target all the while, as when the agent has just committed an image on it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import ConfigurationError, FitError, MissingDependencyError, TargetError
from receiver.disk.fit import efi, programs
from receiver.disk.fit.filesystem import GROWERS
from receiver.disk.fit.fit_target import NO_FIT, FitOptions, check_fit, fit
from receiver.target.open_target import open_target
from tests.support.disks.devices import loop_device
from tests.support.disks.larger_disk import (
    ESP,
    GROW,
    LINUX,
    RECOVERY,
    SMALLEST_MIB,
    SWAP,
    Disk,
    Part,
    digests,
    disk_target,
    filesystem_check,
    fill,
    loops_over,
    make_disk,
    make_filesystem,
    opened,
    partition_of,
    place,
    require_no_loops_over,
    require_right_gpt,
    room_bytes,
)
from tests.support.network.lab import REPOSITORY, run

pytestmark = pytest.mark.needs_root


@pytest.mark.parametrize(
    ("kind", "sector_bytes"),
    [("ext4", 512), ("xfs", 512), ("btrfs", 512), ("ntfs", 512), ("ext4", 4096), ("xfs", 4096)],
)
def test_the_last_partition_and_its_filesystem_fill_a_larger_disk(
    tmp_path: Path, kind: str, sector_bytes: int
) -> None:
    disk = make_disk(
        tmp_path,
        [Part(34, ESP, "vfat" if sector_bytes == 512 else ""), partition_of(kind)],
        size_mib=700,
        sector_bytes=sector_bytes,
    )
    point = tmp_path / "look"
    with opened(disk, kind, 2, point, write=True):
        fill(point)
    with opened(disk, kind, 2, point):
        files = digests(point)
    before = disk.table()
    sentences = disk.fit(GROW)
    assert len(sentences) == 2
    assert "end of the disk" in sentences[0]
    assert re.search(rf"Partition 2 was grown: its {kind} has 66\d\.\d MiB now", sentences[1])
    require_right_gpt(disk)
    after = disk.table()
    assert after["partitions"][0] == before["partitions"][0]
    changed = {**before["partitions"][1], "size": (699 - 35) * MIB // sector_bytes}
    assert after["partitions"][1] == changed
    filesystem_check(disk, kind, 2)
    with opened(disk, kind, 2, point):
        assert digests(point) == files
        assert room_bytes(point) > 0.85 * 664 * MIB
    assert disk.fit(GROW) == []


def test_a_larger_disk_gets_the_backup_table_at_its_end_and_nothing_else_changes(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=90)
    before = disk.backing.read_bytes()
    assert disk.fit(NO_FIT) == ["The backup of the partition table was moved to the end of the disk."]
    require_right_gpt(disk)
    after = disk.backing.read_bytes()
    assert disk.span(1)[1] == SMALLEST_MIB["ext4"] * MIB
    assert after[34 * 512 : -33 * 512] == before[34 * 512 : -33 * 512]
    digest = disk.digest()
    assert disk.fit(NO_FIT) == []
    assert disk.digest() == digest


def test_a_hybrid_mbr_stays_one(tmp_path: Path) -> None:
    """Machines that boot both ways have a hybrid MBR: its entries must not change."""
    disk = make_disk(tmp_path, [partition_of("ext4"), Part(8, LINUX)], size_mib=90)
    os.truncate(disk.backing, disk.image_bytes)
    with disk.device() as device:
        run("sgdisk", "--hybrid=2", device)
    disk.grow_to(90)
    record = disk.backing.read_bytes()[:512]
    assert record[446 + 4] == 0xEE
    assert record[446 + 16 + 4] == 0x83
    assert disk.fit(NO_FIT) == ["The backup of the partition table was moved to the end of the disk."]
    require_right_gpt(disk)
    assert disk.backing.read_bytes()[:512] == record


@pytest.mark.parametrize("options", [NO_FIT, GROW])
def test_a_disk_of_the_images_size_is_left_alone(tmp_path: Path, options: FitOptions) -> None:
    """Even if its last partition couldn't grow: one command serves a room of different disks."""
    disk = make_disk(tmp_path, [partition_of("ext4"), Part(8, RECOVERY)], size_mib=50)
    assert disk.backing.stat().st_size == disk.image_bytes
    digest = disk.digest()
    assert disk.fit(options) == []
    assert disk.digest() == digest


def test_a_primary_partition_of_an_mbr_grows_and_stays_bootable(tmp_path: Path) -> None:
    disk = make_disk(
        tmp_path, [Part(8, "c", "vfat"), Part(40, "83", "ext4", ", bootable")], size_mib=120, table="dos"
    )
    before = disk.table()
    assert len(disk.fit(GROW)) == 1
    after = disk.table()
    before["partitions"][1]["size"] = (120 - 9) * MIB // 512
    assert after == before
    filesystem_check(disk, "ext4", 2)
    with opened(disk, "ext4", 2, tmp_path / "look") as point:
        assert room_bytes(point) > 0.85 * 111 * MIB


def test_a_logical_partition_grows_with_the_extended_one_around_it(tmp_path: Path) -> None:
    backing = tmp_path / "disk"
    with backing.open("wb") as file:
        file.truncate(64 * MIB)
    script = (
        "label: dos\nstart=1MiB, size=8MiB, type=83\nstart=9MiB, size=54MiB, type=5\n"
        "start=10MiB, size=10MiB, type=83\nstart=22MiB, size=40MiB, type=83\n"
    )
    run("sfdisk", "-q", backing, text=script)
    make_filesystem(tmp_path / "part", "ext4", 40 * MIB, 512)
    place(tmp_path / "part", backing, 22 * MIB)
    disk = Disk(backing, 64 * MIB)
    disk.grow_to(130)
    before = {number: disk.span(number) for number in (1, 5)}
    assert len(disk.fit(GROW)) == 1
    assert {number: disk.span(number) for number in (1, 5)} == before
    assert disk.span(2) == (9 * MIB, 121 * MIB)
    assert disk.span(6) == (22 * MIB, 108 * MIB)
    filesystem_check(disk, "ext4", 6)
    assert disk.fit(GROW) == []


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_a_filesystem_without_a_partition_table_grows_alone(tmp_path: Path, kind: str) -> None:
    """The image of a partition is written to a larger partition."""
    size_bytes = SMALLEST_MIB[kind] * MIB
    make_filesystem(tmp_path / "disk", kind, size_bytes, 512)
    disk = Disk(tmp_path / "disk", size_bytes)
    disk.grow_to(260)
    sentences = disk.fit(GROW)
    assert len(sentences) == 1
    assert sentences[0].startswith("The filesystem was grown")
    filesystem_check(disk, kind, 0)
    with opened(disk, kind, 0, tmp_path / "look") as point:
        assert room_bytes(point) > 0.85 * 260 * MIB
    assert disk.fit(GROW) == []


def fit_until_killed(backing: str, image_bytes: str, steps: str) -> None:
    """Fit in a process of its own, and kill it before step number ``steps`` or while growing."""
    disk = Disk(Path(backing), int(image_bytes))
    left = int(steps)

    def count(_step: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    device = next(Path("/dev", name) for name in loops_over(disk.backing))
    with open_target(device, raw_bytes=disk.image_bytes) as target:
        fit(target, disk.manifest, GROW, on_step=count)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_kill_between_any_two_steps_leaves_a_working_disk_that_the_next_run_finishes(
    tmp_path: Path, kind: str
) -> None:
    made = make_disk(tmp_path, [partition_of(kind)], size_mib=500)
    golden = tmp_path / "golden"
    run("cp", "--sparse=always", made.backing, golden)
    code = "import sys; from tests.e2e.test_fit import fit_until_killed; fit_until_killed(*sys.argv[1:])"
    for step in range(1, 6):
        run("cp", "--sparse=always", golden, made.backing)
        disk = Disk(made.backing, made.image_bytes)
        with disk.device() as device:
            argv = [sys.executable, "-c", code, str(disk.backing), str(disk.image_bytes), str(step)]
            done = subprocess.run(argv, cwd=REPOSITORY, check=False)
            assert done.returncode == -signal.SIGKILL
            require_no_loops_over(device)
        with disk.device() as device:
            assert "corrupt" not in run("sgdisk", "--verify", device)
        filesystem_check(disk, kind, 1)
        disk.fit(GROW)
        require_right_gpt(disk)
        assert disk.span(1)[1] == 498 * MIB
        filesystem_check(disk, kind, 1)
        assert disk.fit(GROW) == []


def test_a_loop_device_disappears_with_its_process(tmp_path: Path) -> None:
    """After a kill while a tool uses the loop device, the disk can be claimed again at once."""
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=90)
    code = (
        "import os, pathlib, sys; from protocol.program.loop_device import loop_device\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_EXCL)\n"
        "with loop_device(fd, 1 << 20, 40 << 20, sector_bytes=512, name='x') as device:\n"
        "    print(device, pathlib.Path('/sys/class/block', device.name, 'size').read_text(), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    with disk.device() as device:
        argv = [sys.executable, "-c", code, str(device)]
        done = subprocess.run(argv, cwd=REPOSITORY, check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL
        assert done.stdout.split()[1] == str((40 << 20) // 512)
        require_no_loops_over(device)
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))


def test_btrfs_grows_on_a_disk_where_this_machine_saw_a_newer_copy_of_it(tmp_path: Path) -> None:
    """The kernel remembers an older use of the disk: the same filesystem with a higher generation."""
    disk = make_disk(tmp_path, [partition_of("btrfs")], size_mib=300)
    point = tmp_path / "look"
    golden = tmp_path / "golden"
    shutil.copyfile(disk.backing, golden)
    start, size = disk.span(1)
    with loop_device(disk.backing, "--offset", str(start), "--sizelimit", str(size)) as old:
        point.mkdir()
        for name in "abc":
            run("mount", "-t", "btrfs", old, point)
            (point / name).touch()
            run("umount", point)
        run("btrfs", "device", "scan", old)
        run("dd", f"if={golden}", f"of={disk.backing}", "bs=1M", "conv=notrunc", "status=none")
        assert "grown" in disk.fit(GROW)[-1]
    filesystem_check(disk, "btrfs", 1)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (Part(34, LINUX, "vfat"), r"partition \(2\), the filesystem is vfat"),
        (Part(8, LINUX), r"partition \(2\), the filesystem is unknown"),
        (Part(8, SWAP, "swap"), r"partition \(2\) is swap"),
        (Part(8, LINUX, "swap"), r"partition \(2\), the content is swap"),
        (Part(40, RECOVERY, "ntfs"), r"partition \(2\) is a Windows recovery partition"),
        (Part(34, ESP, "vfat"), r"partition \(2\) is an EFI system partition"),
    ],
    ids=lambda value: f"{value.type[:8]}-{value.filesystem}" if isinstance(value, Part) else "",
)
def test_growth_with_an_obstacle_is_refused_before_anything_is_written(
    tmp_path: Path, last: Part, reason: str
) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4"), last], size_mib=120)
    digest = disk.digest()
    with pytest.raises(ConfigurationError, match=f"{reason}.*without --grow; nothing was written"):
        disk.fit(GROW)
    assert disk.digest() == digest
    # An image without a layout is checked once it is on the disk.
    old = disk.manifest_with(layout=False)
    with pytest.raises(FitError, match=f"{reason}.*complete and verified"):
        disk.fit(GROW, old)
    require_right_gpt(disk)
    assert disk.fit(NO_FIT, old) == []


def test_an_image_without_a_layout_grows_too(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    assert "Partition 1 was grown" in disk.fit(GROW, disk.manifest_with(layout=False))[1]


def test_growing_a_file_is_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    path = tmp_path / "copy.raw"
    with open_target(path, raw_bytes=disk.image_bytes) as target:
        with pytest.raises(TargetError, match=r"is a file.*nothing was written"):
            check_fit(GROW, target, disk.manifest)
        check_fit(NO_FIT, target, disk.manifest)
        assert fit(target, disk.manifest, NO_FIT) == []


def test_a_missing_tool_is_named_with_its_package_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk(tmp_path, [partition_of("ntfs")], size_mib=120)
    with disk_target(disk) as target, monkeypatch.context() as patch:
        patch.setattr(programs, "_SYSTEM_PATH", ())
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(MissingDependencyError, match=r"ntfsresize.*apt install fdisk ntfs-3g"):
            check_fit(GROW, target, disk.manifest)
        check_fit(NO_FIT, target, disk.manifest)


def test_a_kernel_that_cannot_mount_it_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk(tmp_path, [partition_of("btrfs")], size_mib=200)
    monkeypatch.setattr("receiver.disk.fit.fit_target.has_driver", lambda _name: False)
    with disk_target(disk) as target, pytest.raises(MissingDependencyError, match="no driver"):
        check_fit(GROW, target, disk.manifest)


def test_an_ntfs_that_is_due_for_chkdsk_keeps_its_partition(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ntfs")], size_mib=120)
    start, size = disk.span(1)
    with loop_device(disk.backing, "--offset", str(start), "--sizelimit", str(size)) as device:
        run("ntfsresize", "--force", "--size", "30M", device)  # which schedules chkdsk
    with pytest.raises(
        FitError, match=r"ntfsresize failed.*chkdsk.*the image on it is complete and verified"
    ):
        disk.fit(GROW)
    assert disk.span(1) == (start, size)
    require_right_gpt(disk)


def test_an_ext4_that_e2fsck_cannot_fix_automatically_keeps_its_partition(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    before = disk.span(1)
    with loop_device(disk.backing, "--offset", str(before[0]), "--sizelimit", str(before[1])) as device:
        run("debugfs", "-w", "-R", "clri <2>", device)
    with pytest.raises(
        FitError, match=r"e2fsck failed with code 4: .*the image on it is complete and verified"
    ):
        disk.fit(GROW)
    assert disk.span(1) == before


def test_a_filesystem_that_fails_its_check_after_growing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Growing failed unnoticed by the tool: that is never a success."""
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    ext = GROWERS["ext4"]

    def grow_badly(device: Path) -> None:
        ext.grow(device)
        run("debugfs", "-w", "-R", "clri <2>", device)

    growers = {"ext4": dataclasses.replace(ext, grow=grow_badly)}
    monkeypatch.setattr("receiver.disk.fit.fit_target.GROWERS", growers)
    with pytest.raises(FitError, match=r"checking the grown.*e2fsck failed.*run the same command again"):
        disk.fit(GROW)


def test_a_filesystem_that_did_not_grow_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    idle = dataclasses.replace(GROWERS["ext4"], grow=lambda _device: None)
    monkeypatch.setattr("receiver.disk.fit.fit_target.GROWERS", {"ext4": idle})
    with pytest.raises(FitError, match=r"has 40\.0 MiB instead of 118\.0 MiB"):
        disk.fit(GROW)


def test_a_linux_raid_member_is_not_grown(tmp_path: Path) -> None:
    """A RAID superblock is at the end, so that the member looks like the filesystem inside."""
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    before = disk.span(1)
    with disk.backing.open("r+b") as file:
        file.seek(sum(before) - 8192)
        file.write(b"\xfc\x4e\x2b\xa9")
    with pytest.raises(FitError, match="Linux RAID"):
        disk.fit(GROW)
    assert disk.span(1) == before


def test_a_partition_in_use_means_a_reboot_and_no_error(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=120)
    with (
        loop_device(disk.backing, "--partscan") as device,
        open_target(device, raw_bytes=disk.image_bytes) as target,
    ):
        run("addpart", device, "1", "2048", str(40 * 2048))
        node = Path(f"{device}p1")
        fd = os.open(node, os.O_RDONLY)
        try:
            sentences = fit(target, disk.manifest, NO_FIT)
        finally:
            os.close(fd)
        assert len(sentences) == 2
        assert "reboot before using it" in sentences[1]
        assert fit(target, disk.manifest, NO_FIT) == []
        assert (
            not node.exists()
        )  # the kernel's old partitions are gone; this kernel has no parser for the new table


# -- firmware: test machines have none, but efibootmgr accepts a directory instead -----------------------------


@pytest.fixture
def firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "efi"
    (directory / "efivars").mkdir(parents=True)
    (directory / "fw_platform_size").write_text("64\n")
    monkeypatch.setattr(efi, "FIRMWARE", directory)
    monkeypatch.setenv("EFIVARFS_PATH", f"{directory}/efivars/")
    make_entries(tmp_path, "Windows", option="--create-only")
    return directory


def make_entries(directory: Path, *labels: str, option: str = "--create") -> None:
    """Create entries of another disk; the last one created is first in the boot order."""
    path = directory / "other"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    run("sfdisk", "-q", path, text=f"label: gpt\nsize=4MiB, type={ESP}\n")
    with loop_device(path) as device:
        for label in labels:
            run("efibootmgr", option, "--disk", device, "--label", label)


def loaded_disk(directory: Path, *, loader: str = "", mbr: bool = False) -> Disk:
    system = "ef" if mbr else ESP
    disk = make_disk(
        directory,
        [Part(34, system, "vfat"), Part(8, "83" if mbr else LINUX)],
        size_mib=50,
        table="dos" if mbr else "gpt",
    )
    image = f"{disk.backing}@@{MIB}"
    for name in ("::/EFI", "::/EFI/BOOT"):
        run("mmd", "-i", image, name)
    name = loader or efi.local_loader_name().lower()
    run("mcopy", "-i", image, "/etc/hostname", f"::/EFI/BOOT/{name}")
    return disk


ENTRY = FitOptions(efi_label="Room 12")


@pytest.mark.usefixtures("firmware")
def test_a_boot_entry_is_made_once_and_not_again(tmp_path: Path) -> None:
    disk = loaded_disk(tmp_path)
    sentences = disk.fit(ENTRY)
    assert "boot entry Room 12" in sentences[1]
    entries = efi.list_entries()
    ours = [entry for entry in entries.entries if entry.label == "Room 12"]
    assert len(ours) == 1
    assert [entry.label for entry in entries.entries] == ["Windows", "Room 12"]
    assert entries.order[0] == ours[0].number
    assert disk.fit(ENTRY) == []
    assert efi.list_entries() == entries


@pytest.mark.usefixtures("firmware")
@pytest.mark.parametrize("mbr", [False, True])
def test_an_entry_of_the_same_label_is_replaced_and_keeps_its_place(tmp_path: Path, mbr: bool) -> None:
    """A room that boots from the network first continues to do so."""
    make_entries(tmp_path, "Room 12", "Room 12", "Network")
    disk = loaded_disk(tmp_path, mbr=mbr)
    assert "replaces 2 with that label" in disk.fit(ENTRY)[-1]
    entries = efi.list_entries()
    labels = {entry.number: entry.label for entry in entries.entries}
    # A file isn't cut when a shorter variable is written over it, as firmware does: numbers without an entry follow.
    assert [labels[number] for number in entries.order if number in labels][:2] == ["Network", "Room 12"]
    assert sorted(labels.values()) == ["Network", "Room 12", "Windows"]
    path = next(entry.path for entry in entries.entries if entry.label == "Room 12")
    assert path.lower().startswith("hd(1,mbr," if mbr else f"hd(1,gpt,{unique_guid(disk)}")
    assert "BOOT" in path


BOOT_NEXT = FitOptions(boot_next=True)


@pytest.mark.usefixtures("firmware")
def test_the_next_boot_is_the_disk_and_the_network_stays_first(tmp_path: Path) -> None:
    """Without it, a machine whose firmware asks the network first comes back to be imaged again."""
    make_entries(tmp_path, "Network")
    disk = loaded_disk(tmp_path)
    assert disk.fit(BOOT_NEXT)[-1] == "The next boot starts diskcast disk, once."
    entries = efi.list_entries()
    labels = {entry.number: entry.label for entry in entries.entries}
    assert [labels[number] for number in entries.order] == ["Network", "diskcast disk"]
    following = run("efibootmgr").partition("BootNext: ")[2][:4]
    assert labels[following] == "diskcast disk"
    assert disk.fit(BOOT_NEXT) == ["The next boot starts diskcast disk, once."]
    assert efi.list_entries() == entries


@pytest.mark.usefixtures("firmware")
def test_the_next_boot_is_the_named_entry_if_there_is_one(tmp_path: Path) -> None:
    make_entries(tmp_path, "Network")
    disk = loaded_disk(tmp_path)
    sentences = disk.fit(FitOptions(efi_label="Room 12", boot_next=True))
    assert sentences[-1] == "The next boot starts Room 12, once."
    assert [entry.label for entry in efi.list_entries().entries] == ["Windows", "Network", "Room 12"]


@pytest.mark.usefixtures("firmware")
def test_a_next_boot_that_cant_be_set_is_no_failed_cast(tmp_path: Path) -> None:
    disk = loaded_disk(tmp_path, loader="OTHER.EFI")
    assert "couldn't be set as the next boot" in disk.fit(BOOT_NEXT)[-1]


def test_a_machine_booted_by_bios_ignores_the_next_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efi, "FIRMWARE", tmp_path / "none")
    assert not any("next boot" in sentence for sentence in loaded_disk(tmp_path).fit(BOOT_NEXT))


def unique_guid(disk: Disk) -> str:
    return disk.table()["partitions"][0]["uuid"].lower()


@pytest.mark.usefixtures("firmware")
def test_a_loader_that_is_not_there_gets_no_entry(tmp_path: Path) -> None:
    disk = loaded_disk(tmp_path, loader="OTHER.EFI")
    before = efi.list_entries()
    with pytest.raises(FitError, match="isn't on the EFI system partition"):
        disk.fit(ENTRY)
    assert efi.list_entries() == before


@pytest.mark.usefixtures("firmware")
def test_an_image_without_a_system_partition_gets_no_entry(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, [partition_of("ext4")], size_mib=50)
    with pytest.raises(ConfigurationError, match=r"no EFI system partition.*nothing was written"):
        disk.fit(ENTRY)


def test_a_machine_booted_by_bios_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efi, "FIRMWARE", tmp_path / "none")
    disk = loaded_disk(tmp_path)
    digest = disk.digest()
    with pytest.raises(ConfigurationError, match=r"booted by BIOS.*nothing was written"):
        disk.fit(ENTRY)
    assert disk.digest() == digest
