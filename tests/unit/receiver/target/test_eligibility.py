"""Every holder of a disk is found in any stack of devices, and reported with the command that releases it."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.errors import (
    TargetError,
    TargetIncompatibleError,
    TargetInUseError,
    TargetIsImageError,
    TargetIsSystemDiskError,
    TargetReadOnlyError,
    TargetTooSmallError,
)
from receiver.disk.inventory.holders import LoopFile
from receiver.target.eligibility import ImageNeeds, Refusal, file_refusal, incompatibility, judge
from tests.support.network.fake_machine import GIB, FakeMachine

DISK = Path("/dev/sda")
GPT_512 = DiskLayout(TableKind.GPT, 512, (Partition(1, 1 << 20, 1 << 20, "X"),))


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    machine = FakeMachine(tmp_path)
    machine.disk("sda", "8:0")
    machine.partition("sda", 1, "8:1")
    machine.partition("sda", 2, "8:2")
    machine.disk("sdb", "8:16")
    return machine


def _judge(machine: FakeMachine, name: str, needs: ImageNeeds | None = None) -> Refusal | None:
    return judge(machine.device(name), machine.inventory(), needs or ImageNeeds(), probe=machine.probe)


def _refused(machine: FakeMachine, name: str, error_class: type[TargetError], *words: str) -> Refusal:
    refusal = _judge(machine, name)
    assert refusal is not None
    assert refusal.error_class is error_class
    text = str(refusal.error())
    for word in (*words, "nothing was written"):
        assert word in text
    return refusal


def test_a_free_disk_is_usable(machine: FakeMachine) -> None:
    assert _judge(machine, "sda") is None
    assert _judge(machine, "sda1") is None


def test_a_mount_of_a_partition_holds_the_whole_disk_but_not_its_neighbour(machine: FakeMachine) -> None:
    machine.mount("8:1", "/mnt/my data")
    _refused(
        machine,
        "sda",
        TargetInUseError,
        f"{machine.node('sda1')} is mounted at /mnt/my data",
        "umount '/mnt/my",
    )
    _refused(machine, "sda1", TargetInUseError, "in use: mounted at /mnt/my data")
    assert _judge(machine, "sda2") is None
    assert _judge(machine, "sdb") is None


def test_a_mount_of_the_whole_disk_holds_its_partitions(machine: FakeMachine) -> None:
    machine.mount("8:0", "/mnt")
    _refused(machine, "sda2", TargetInUseError, f"{machine.node('sda')} is mounted at /mnt")


def test_swap_holds(machine: FakeMachine) -> None:
    machine.swap(machine.node("sda2"))
    _refused(machine, "sda", TargetInUseError, f"{machine.node('sda2')} is used as swap", "swapoff")


def test_a_pool_without_a_number_of_its_own_holds_all_its_members(machine: FakeMachine) -> None:
    """With btrfs over two disks, mountinfo names one of them, with an invented device number."""
    for name in ("sda2", "sdb"):
        (machine.system_paths.sys / "fs/btrfs/1234-abcd/devices" / name).mkdir(parents=True)
    machine.mount("0:42", "/srv", filesystem="btrfs", source=machine.node("sda2"))
    _refused(machine, "sda", TargetInUseError, "mounted at /srv")
    _refused(machine, "sdb", TargetInUseError, "mounted at /srv")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"dm/name": "my--group-root", "dm/uuid": "LVM-abc"},
            ("LVM volume my--group-root", "vgchange --activate n my-group"),
        ),
        (
            {"dm/name": "secret", "dm/uuid": "CRYPT-LUKS2-abc-secret"},
            ("encrypted", "cryptsetup close secret"),
        ),
        ({"dm/name": "mpatha", "dm/uuid": "mpath-3600"}, ("multipath", "--target /dev/mapper/mpatha")),
        ({"dm/name": "other", "dm/uuid": ""}, ("device-mapper", "dmsetup remove other")),
    ],
)
def test_device_mapper_holds(machine: FakeMachine, files: dict[str, str], words: tuple[str, ...]) -> None:
    machine.stacked("dm-0", "252:0", ["sda2"], files)
    machine.mount("252:0", "/data")
    _refused(machine, "sda", TargetInUseError, machine.node("sda2"), "mounted at /data", *words)


def test_a_raid_holds_all_its_members(machine: FakeMachine) -> None:
    machine.stacked("md127", "9:127", ["sda1", "sdb"])
    machine.stacked("dm-0", "252:0", ["md127"], {"dm/name": "vg-home", "dm/uuid": "LVM-x"})
    machine.mount("252:0", "/home")
    for name in ("sda", "sdb"):
        _refused(
            machine, name, TargetInUseError, f"part of the RAID {machine.node('md127')}", "mounted at /home"
        )
    assert _judge(machine, "sda2") is None


def test_a_loop_device_over_a_disk_is_found_although_the_kernel_claims_nothing(machine: FakeMachine) -> None:
    machine.loop("loop3", "7:3", machine.node("sdb"))
    _refused(machine, "sdb", TargetInUseError, machine.node("loop3"), "losetup --detach")


def test_many_uses_are_summarised(machine: FakeMachine) -> None:
    for index in range(9):
        machine.mount("8:1", f"/mnt/{index}")
    refusal = _refused(machine, "sda", TargetInUseError, "and 6 more")
    assert "/mnt/8" not in refusal.reason


# -- the running system ------------------------------------------------------------------------------------------


def _is_system(machine: FakeMachine, *names: str) -> bool:
    refusals = [_judge(machine, name) for name in names]
    return all(refusal and refusal.error_class is TargetIsSystemDiskError for refusal in refusals)


@pytest.mark.parametrize(
    "point", ["/", "/boot", "/boot/efi", "/usr", "/run/live/medium", "/cdrom", "/run/archiso/bootmnt"]
)
def test_the_disk_of_the_running_system(machine: FakeMachine, point: str) -> None:
    machine.mount("8:1", point)
    assert _is_system(machine, "sda", "sda1")
    assert _judge(machine, "sdb") is None


def test_a_system_on_encrypted_lvm_on_a_raid(machine: FakeMachine) -> None:
    machine.stacked("md0", "9:0", ["sda2", "sdb"])
    machine.stacked("dm-0", "252:0", ["md0"], {"dm/name": "luks", "dm/uuid": "CRYPT-x"})
    machine.stacked("dm-1", "252:1", ["dm-0"], {"dm/name": "vg-root", "dm/uuid": "LVM-x"})
    machine.mount("252:1", "/")
    assert _is_system(machine, "sda", "sda2", "sdb")


def test_a_live_system_from_a_stick(machine: FakeMachine) -> None:
    """live-boot mounts an overlay over a squashfs in a loop device whose file is on the stick."""
    machine.mount("0:2", "/", filesystem="rootfs", source="rootfs")
    machine.mount("8:17", "/run/live/medium", filesystem="vfat", source="/dev/sdb1")
    machine.partition("sdb", 1, "8:17")
    machine.loop("loop0", "7:0", "/run/live/medium/live/filesystem.squashfs")
    machine.mount("7:0", "/run/live/rootfs/filesystem.squashfs", filesystem="squashfs", source="/dev/loop0")
    machine.mount("0:30", "/run/live/overlay", filesystem="tmpfs", source="tmpfs")
    machine.mount(
        "0:31",
        "/",
        filesystem="overlay",
        source="overlay",
        options="rw,lowerdir=/run/live/rootfs/filesystem.squashfs/,upperdir=/run/live/overlay/rw,workdir=/w",
    )
    assert _is_system(machine, "sdb", "sdb1", "loop0")
    assert _judge(machine, "sda") is None


def test_a_live_system_whose_medium_only_the_kernel_still_knows(machine: FakeMachine) -> None:
    """The initramfs mounted the medium at a lost path; the loop device knows its file's filesystem."""
    machine.partition("sdb", 1, "8:17")
    machine.loop("loop0", "7:0", "/live/medium/filesystem.squashfs", filesystem="8:17")
    machine.stacked("dm-0", "252:0", ["loop0"], {"dm/name": "live-rw", "dm/uuid": ""})
    machine.mount("252:0", "/")
    assert _is_system(machine, "sdb", "sdb1", "loop0")
    assert _judge(machine, "sda") is None


def test_a_system_in_memory_stands_on_no_disk(machine: FakeMachine) -> None:
    machine.mount("0:2", "/", filesystem="rootfs", source="rootfs")
    machine.loop("loop0", "7:0", "/run/root.squashfs")
    machine.mount("7:0", "/usr", filesystem="squashfs")
    assert _judge(machine, "sda") is None
    assert _judge(machine, "sdb") is None


def test_an_overlay_with_paths_that_lead_nowhere_is_no_endless_search(machine: FakeMachine) -> None:
    machine.mount(
        "0:31", "/", filesystem="overlay", source="overlay", options="rw,lowerdir=/gone:/also,upperdir=/x"
    )
    machine.loop("loop0", "7:0", "/file/on/the/root")
    machine.mount("7:0", "/usr")
    assert _judge(machine, "sda") is None


def test_another_partition_of_the_systems_disk_may_be_written_when_it_is_named(machine: FakeMachine) -> None:
    machine.mount("8:1", "/")
    assert _judge(machine, "sda2") is None


# -- the rest ----------------------------------------------------------------------------------------------------


def test_read_only_small_and_empty_disks(machine: FakeMachine) -> None:
    machine.disk("sdc", "8:32", files={"ro": "1"})
    machine.disk("sdd", "8:48", size_bytes=0)
    _refused(machine, "sdc", TargetReadOnlyError, "read-only", "blockdev")
    _refused(machine, "sdd", TargetError, "no medium")
    refusal = _judge(machine, "sda", ImageNeeds(65 * GIB))
    assert refusal is not None
    assert refusal.error_class is TargetTooSmallError
    assert str(65 * GIB) in refusal.reason


def test_the_disk_that_holds_the_image_file(machine: FakeMachine, tmp_path: Path) -> None:
    image = tmp_path / "lab.dci"
    image.write_bytes(b"x")
    machine.mount("8:2", str(tmp_path))
    refusal = _judge(machine, "sda", ImageNeeds(path=image))
    assert refusal is not None
    assert refusal.error_class is TargetIsImageError
    assert str(image) in refusal.reason
    assert _judge(machine, "sda1", ImageNeeds(path=image)) is None


def test_a_loop_device_over_the_image_file(machine: FakeMachine, tmp_path: Path) -> None:
    image = tmp_path / "lab.dci"
    image.write_bytes(b"x")
    machine.loop("loop0", "7:0", "/a/path/of/another/namespace")
    status = image.stat()
    machine.loop_files["loop0"] = LoopFile(status.st_dev, status.st_ino)
    refusal = _judge(machine, "loop0", ImageNeeds(path=image))
    assert refusal is not None
    assert refusal.error_class is TargetIsImageError


def test_a_file_behind_a_mounted_loop_device(machine: FakeMachine, tmp_path: Path) -> None:
    """Writing the file would change a mounted filesystem from below."""
    backing = tmp_path / "disk.raw"
    backing.write_bytes(b"x")
    machine.loop("loop0", "7:0", str(backing))

    def refusal() -> Refusal | None:
        return file_refusal(backing, backing.stat(), machine.inventory(), probe=machine.probe)

    assert refusal() is None
    machine.mount("7:0", "/mnt")
    refused = refusal()
    assert refused is not None
    assert refused.error_class is TargetInUseError
    assert "/mnt" in refused.reason


# -- the image's layout ------------------------------------------------------------------------------------------


def _incompatible(needs: ImageNeeds, sector_bytes: int, *, is_partition: bool = False) -> Refusal | None:
    return incompatibility(needs, DISK, sector_bytes, is_partition=is_partition)


@pytest.mark.parametrize("layout", [GPT_512, None], ids=["a table", "an older image without a layout"])
def test_a_table_of_small_sectors_is_refused_on_a_disk_of_large_ones(layout: DiskLayout | None) -> None:
    """Every partition would be searched at eight times its offset."""
    needs = ImageNeeds(1 << 20, layout, 512)
    assert _incompatible(needs, 512) is None
    refusal = _incompatible(needs, 4096)
    assert refusal is not None
    assert refusal.error_class is TargetIncompatibleError
    assert "4096" in refusal.reason
    assert "nvme format" in refusal.fix


def test_a_table_of_large_sectors_is_refused_on_a_disk_of_small_ones() -> None:
    layout = DiskLayout(TableKind.GPT, 4096, ())
    # A file always reports 512-byte sectors: the table counts.
    assert _incompatible(ImageNeeds(1 << 20, layout, 512), 4096) is None
    assert _incompatible(ImageNeeds(1 << 20, layout, 512), 512) is not None


def test_a_whole_disk_is_refused_inside_a_partition() -> None:
    refusal = _incompatible(ImageNeeds(1 << 20, GPT_512, 512), 512, is_partition=True)
    assert refusal is not None
    assert "whole disk" in refusal.fix


@pytest.mark.parametrize(
    ("filesystem", "fits"), [("ext4", True), ("", True), ("ntfs", False), ("vfat", False)]
)
def test_a_partitions_image_goes_where_its_filesystem_can_be_mounted(filesystem: str, *, fits: bool) -> None:
    needs = ImageNeeds(1 << 20, DiskLayout(TableKind.NONE, 512, (), filesystem=filesystem), 512)
    for is_partition in (False, True):
        assert _incompatible(needs, 512, is_partition=is_partition) is None
        assert (_incompatible(needs, 4096, is_partition=is_partition) is None) is fits


def test_an_image_that_ends_inside_a_sector_is_refused() -> None:
    needs = ImageNeeds(1000)
    refusal = _incompatible(needs, 512)
    assert refusal is not None
    assert "truncate" in refusal.fix
    assert _incompatible(ImageNeeds(1024), 512) is None
