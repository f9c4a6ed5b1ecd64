"""Disks are identified correctly on every kind of machine, so that an operator gets the disk that was named."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.image.incomplete_marker import Marker, build_marker
from receiver.disk.inventory.block_devices import DeviceKind, normalized_wwn
from receiver.disk.inventory.disk_contents import parse_contents
from receiver.disk.inventory.mounts import mount_of, parse_mounts, parse_swaps
from tests.support.network.fake_machine import GIB, FakeMachine


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


USB_TREE = "pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0"


def test_a_sata_disk_without_udev(machine: FakeMachine) -> None:
    """A live system without udev has only the disk's own data from the kernel."""
    folder = machine.disk(
        "sda",
        "8:0",
        size_bytes=500 * GIB,
        files={
            "device/vendor": "ATA     ",
            "device/model": "Samsung SSD 860 ",
            "device/wwid": "naa.5002538e40a1b2c3",
            "queue/rotational": "0",
        },
    )
    (folder / "device/vpd_pg80").write_bytes(b"\x00\x80\x00\x14S3Z9NB0K123456      ")
    disk = machine.device("sda")
    assert (disk.model, disk.serial, disk.transport) == ("Samsung SSD 860", "S3Z9NB0K123456", "sata")
    assert disk.size_bytes == 500 * GIB
    assert normalized_wwn(disk.identity.wwn) == normalized_wwn("0x5002538E40A1B2C3")
    assert not disk.removable


def test_udev_knows_the_whole_model_and_another_serial(machine: FakeMachine) -> None:
    machine.disk(
        "sda",
        "8:0",
        files={"device/vendor": "ATA", "device/model": "SuperVeryLongMod"},
        udev={
            "ID_MODEL_ENC": r"SuperVeryLongModelName\x20X",
            "ID_SERIAL_SHORT": "SHORT1",
            "ID_SCSI_SERIAL": "SCSI1",
        },
    )
    disk = machine.device("sda")
    assert disk.model == "SuperVeryLongModelName X"
    assert disk.identity.serials == ("SCSI1", "SHORT1")


def test_an_nvme_disk_with_large_sectors_and_its_partitions(machine: FakeMachine) -> None:
    machine.disk(
        "nvme0n1",
        "259:0",
        tree="pci0000:00/0000:01:00.0/nvme/nvme0",
        files={
            "device/model": "WD_BLACK SN850X",
            "device/serial": "2231AB",
            "wwid": "eui.e8238fa6bf530001001b448b4c3d2e1f",
            "queue/logical_block_size": "4096",
            "queue/physical_block_size": "4096",
        },
    )
    machine.partition("nvme0n1", 10, "259:2")
    machine.partition("nvme0n1", 2, "259:1", size_bytes=3 * GIB)
    inventory = machine.inventory()
    disk = machine.device("nvme0n1")
    assert (disk.transport, disk.serial, disk.sector_bytes) == ("nvme", "2231AB", 4096)
    partitions = inventory.partitions_of(disk)
    assert [partition.name for partition in partitions] == ["nvme0n1p2", "nvme0n1p10"]
    assert partitions[0].size_bytes == 3 * GIB
    assert partitions[0].kind is DeviceKind.PARTITION
    assert partitions[0].disk_number == disk.number


def test_single_paths_of_multipath_memory_and_boot_areas_are_no_disks(machine: FakeMachine) -> None:
    machine.disk("nvme0c0n1", "259:9", files={"hidden": "1"})
    for minor, name in enumerate(("ram0", "zram0", "mmcblk0boot0", "fd0")):
        machine.disk(name, f"1:{minor}")
    machine.disk("sr0", "11:0", size_bytes=0)
    machine.disk("mmcblk0", "179:0", tree="platform/mmc0/mmc0:0001", files={"device/type": "MMC"})
    assert [disk.name for disk in machine.inventory().disks()] == ["mmcblk0"]


@pytest.mark.parametrize("removable", ["0", "1"])
def test_every_usb_disk_is_removable(machine: FakeMachine, removable: str) -> None:
    """A USB disk reports a fixed medium, although it is portable and may be a backup disk."""
    machine.disk("sdb", "8:16", tree=USB_TREE, files={"removable": removable})
    stick = machine.system_paths.sys / "devices/pci0000:00/0000:00:14.0/usb2/2-1"
    (stick / "idVendor").write_text("0781\n")
    (stick / "serial").write_text("4C530001\n")
    disk = machine.device("sdb")
    assert disk.removable
    assert (disk.transport, disk.serial) == ("usb", "4C530001")


def test_cards_are_removable_and_soldered_memory_is_not(machine: FakeMachine) -> None:
    for index, kind in enumerate(("SD", "MMC")):
        tree = f"platform/mmc{index}/mmc{index}:0001"
        machine.disk(f"mmcblk{index}", f"179:{index}", tree=tree, files={"device/type": kind})
    assert machine.device("mmcblk0").removable
    assert not machine.device("mmcblk1").removable


def test_a_controller_with_a_slash_in_its_names(machine: FakeMachine) -> None:
    machine.disk("cciss!c0d0", "104:0")
    assert str(machine.device("cciss!c0d0").path) == machine.node("cciss/c0d0")


def test_text_from_a_disk_cannot_control_a_terminal(machine: FakeMachine) -> None:
    machine.disk("sda", "8:0", files={"device/model": "evil\x1b]0;x\x07 disk", "device/serial": "\x9b31m\tA"})
    assert machine.device("sda").model == "evil ]0;x disk"
    assert machine.device("sda").serial.isprintable()


def test_a_disk_that_is_unplugged_while_listing_is_left_out(machine: FakeMachine) -> None:
    folder = machine.disk("sda", "8:0")
    machine.disk("sdb", "8:16")
    (folder / "dev").unlink()
    assert [disk.name for disk in machine.inventory().disks()] == ["sdb"]


def test_mounts_with_blanks_optional_fields_and_layers() -> None:
    mounts = parse_mounts(
        "22 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw\n"
        "23 22 8:2 / /mnt/my\\040disk rw - ext4 /dev/sda2 rw\n"
        "24 22 0:30 / /over rw - overlay overlay "
        "rw,lowerdir=/a/with\\134:colon:/b,upperdir=/up,workdir=/work\n"
        "25 22 0:31 / /newer rw - overlay overlay ro,lowerdir+=/c,lowerdir+=/d\n"
        "damaged line\n"
    )
    assert [mount.point for mount in mounts] == ["/", "/mnt/my disk", "/over", "/newer"]
    assert mounts[2].layers == ("/a/with:colon", "/b", "/up", "/work")
    assert mounts[3].layers == ("/c", "/d")
    found = mount_of("/mnt/my disk/x", mounts)
    assert found is not None
    assert found.source == "/dev/sda2"
    assert mount_of("/mnt/my disks", mounts) is mounts[0]


def test_swaps_with_blanks() -> None:
    assert parse_swaps(
        "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n/my\\040swap file 1 0 -3\n"
    ) == (
        "/dev/sda2",
        "/my swap",
    )


def test_an_interrupted_restore_is_recognised_on_the_disk() -> None:
    content = build_marker(Marker(bytes(32), "lab-2024", 1 << 20)).ljust(1 << 20, b"\0")
    contents = parse_contents(lambda offset, length: content[offset : offset + length], len(content), 512)
    assert contents.incomplete_image == "lab-2024"
    assert "lab-2024" in contents.text


@pytest.mark.parametrize(
    ("offset", "magic", "words"),
    [
        (512, b"LABELONE", "LVM"),
        (4096, b"\xfc\x4e\x2b\xa9", "RAID"),
        (1080, b"\x53\xef", "ext4"),
        (0, b"", "nothing known"),
    ],
)
def test_sleeping_volume_groups_and_raids_are_noted(offset: int, magic: bytes, words: str) -> None:
    content = bytearray(1 << 20)
    content[offset : offset + len(magic)] = magic
    contents = parse_contents(lambda start, length: bytes(content[start : start + length]), len(content), 512)
    assert words in contents.text
