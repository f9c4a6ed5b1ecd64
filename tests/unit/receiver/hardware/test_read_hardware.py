"""Hardware from sysfs. Lost if these fail: operators see another machine than the one in front of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.constants import HARDWARE_DEVICES_MAX
from protocol.model.hardware import FirmwareKind
from receiver.disk.inventory.block_devices import SystemPaths
from receiver.hardware.read_hardware import is_on_usb, read_hardware


@pytest.fixture
def system(tmp_path: Path) -> SystemPaths:
    for name in ("sys/block", "sys/class/net", "sys/class/dmi/id", "proc", "dev", "udev"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        2030000 kB\nMemFree: 1 kB\n")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Intel(R)  Core(TM) i5\n")
    return SystemPaths(tmp_path / "sys", tmp_path / "proc", tmp_path / "dev", tmp_path / "udev")


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def add_disk(
    system: SystemPaths, name: str, sectors: int, *, sector_bytes: int = 512, hardware: bool = True
) -> None:
    folder = system.sys / "block" / name
    write(
        folder,
        dev=f"8:{len(list((system.sys / 'block').iterdir())) * 16}",
        size=str(sectors),
        removable="0",
        ro="0",
    )
    write(folder / "queue", logical_block_size=str(sector_bytes), physical_block_size="4096", rotational="1")
    if hardware:
        write(folder / "device", model="Disk 9  ", serial="S9")


def add_card(system: SystemPaths, name: str, place: str, *, driver: str, **files: str) -> None:
    device = system.sys / "devices" / place
    write(device, **files)
    module = system.sys / "bus/drivers" / driver
    module.mkdir(parents=True)
    (device / "driver").symlink_to(module)
    write(system.sys / "class/net" / name, type="1", address="52:54:00:aa:bb:01", speed="1000")
    (system.sys / "class/net" / name / "device").symlink_to(device)


def test_processor_memory_and_firmware_are_read(system: SystemPaths) -> None:
    found = read_hardware(system)
    assert (found.processor, found.memory_bytes) == ("Intel(R) Core(TM) i5", 2030000 * 1024)
    assert (found.firmware, found.secure_boot, found.architecture) == (
        FirmwareKind.BIOS,
        None,
        os.uname().machine,
    )
    write(system.sys / "class/tpm/tpm0", tpm_version_major="2")
    variables = system.sys / "firmware/efi/efivars"
    variables.mkdir(parents=True)
    assert read_hardware(system).secure_boot is None
    (variables / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(b"\6\0\0\0\1")
    found = read_hardware(system)
    assert (found.firmware, found.secure_boot, found.tpm_version) == (FirmwareKind.UEFI, True, "2")


def test_a_machine_without_any_of_that_is_described_too(tmp_path: Path) -> None:
    found = read_hardware(SystemPaths(tmp_path, tmp_path, tmp_path, tmp_path))
    assert (found.memory_bytes, found.firmware, found.disks) == (0, FirmwareKind.UNKNOWN, ())


def test_disks_have_their_sectors_and_candidates_come_first(system: SystemPaths) -> None:
    add_disk(system, "sda", 1 << 21)
    add_disk(system, "nvme0n1", 1 << 22, sector_bytes=4096)
    add_disk(system, "sr0", 99)
    add_disk(system, "sdz", 0)
    add_disk(system, "loop0", 99, hardware=False)
    found = read_hardware(system, is_candidate=lambda disk: disk.name == "sda")
    assert [(disk.name, disk.size_bytes, disk.sector_bytes) for disk in found.disks] == [
        ("sda", 1 << 30, 512),
        ("nvme0n1", 2 << 30, 4096),
    ]
    assert (found.disks[0].model, found.disks[0].serial) == ("Disk 9", "S9")
    assert [
        disk.name for disk in read_hardware(system, is_candidate=lambda disk: disk.name == "loop0").disks
    ] == [
        "loop0",
        "nvme0n1",
        "sda",
    ]


def test_no_more_disks_are_reported_than_a_daemon_takes(system: SystemPaths) -> None:
    for index in range(HARDWARE_DEVICES_MAX + 4):
        add_disk(system, f"sd{index}", 8)
    found = read_hardware(system, is_candidate=lambda disk: disk.name == "sd9")
    assert len(found.disks) == HARDWARE_DEVICES_MAX
    assert found.disks[0].name == "sd9"


def test_cards_have_their_drivers_and_those_without_one_are_named(system: SystemPaths) -> None:
    add_card(
        system, "eth0", "pci/00", driver="e1000e", vendor="0x8086", device="0x15fa", modalias="pci:v8086"
    )
    usb = "pci/01/usb2/2-1/2-1:1.0"
    add_card(system, "eth1", usb, driver="r8152", modalias="usb:v0BDAp8153")
    write(system.sys / "devices/pci/01/usb2/2-1", idVendor="0bda", idProduct="8153")
    write(system.sys / "class/net/br0", type="1", address="52:54:00:00:00:99")  # a bridge
    write(
        system.sys / "bus/pci/devices/0000:02:00.0",
        vendor="0x10ec",
        device="0x8125",
        modalias="pci:v10EC",
        **{"class": "0x020000"},
    )
    cards = read_hardware(system).cards
    assert [(card.name, card.driver, card.device_id, card.on_usb) for card in cards] == [
        ("eth0", "e1000e", "8086:15fa", False),
        ("eth1", "r8152", "0bda:8153", True),
        ("", "", "10ec:8125", False),
    ]
    assert (cards[0].mac, cards[0].speed_mbps, cards[0].modalias) == ("52:54:00:aa:bb:01", 1000, "pci:v8086")
    assert is_on_usb(system.sys / "class/net/eth1")
    assert not is_on_usb(system.sys / "class/net/br0")


def test_disk_controllers_are_named_with_and_without_a_driver(system: SystemPaths) -> None:
    folder = system.sys / "bus/pci/devices/0000:00:0e.0"
    write(folder, vendor="0x8086", device="0x9a0b", modalias="pci:v8086d9A0B", **{"class": "0x010400"})
    [controller] = read_hardware(system).controllers
    assert (controller.driver, controller.device_id) == ("", "8086:9a0b")
