"""The judgement of machines. If these fail, a cast overwrites a disk that can't start, or leaves out a good one."""

from __future__ import annotations

import dataclasses

import pytest

from protocol.constants import GIB, MIB
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.model.hardware import (
    DiskHealth,
    FirmwareKind,
    Hardware,
    HardwareController,
    SmartVerdict,
)
from protocol.preflight.judgement import (
    Grade,
    Subject,
    judge_machine,
    refusal_text,
    worst_grade,
)
from protocol.preflight.requirements import DriverAliases, ImageRequirements, firmwares_of
from protocol.preflight.sectors import sector_needs, sector_problem
from tests.support.disks.disk_layouts import EFI_GUID, LINUX_GUID
from tests.support.hardware import AHCI, E1000E, sample_card, sample_disk, sample_hardware

BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"


def layout(table: TableKind, *types: str, sector_bytes: int = 512) -> DiskLayout:
    parts = tuple(Partition(number, number * MIB, MIB, kind) for number, kind in enumerate(types, 1))
    return DiskLayout(table, sector_bytes, parts)


GPT = layout(TableKind.GPT, EFI_GUID, LINUX_GUID)
IMAGE = ImageRequirements(
    sector_needs(GPT, 512, 100 * GIB), (FirmwareKind.UEFI,), "x86_64", signed_loader=True, drivers_known=True
)
DRIVERS = DriverAliases(["pci:v00008086d000015FAsv*sd*bc*sc*i*", "pci:v*d*sv*sd*bc01sc06i01*"])


def grades(
    hardware: Hardware | None, image: ImageRequirements = IMAGE, drivers: DriverAliases | None = DRIVERS
) -> dict[str, str]:
    """Return the subjects that aren't well."""
    checks = judge_machine(image, hardware, drivers)
    assert [check.subject for check in checks] == list(Subject)
    assert all(check.fix for check in checks if check.grade in (Grade.WARN, Grade.REFUSE))
    return {check.subject.value: check.grade.value for check in checks if check.grade is not Grade.OK}


def test_a_machine_that_fits_is_well_in_every_respect() -> None:
    assert grades(sample_hardware()) == {}


def test_nothing_is_refused_that_nobody_has_reported() -> None:
    assert set(grades(None).values()) == {"unknown"}
    bare = ImageRequirements(sector_needs(None, None, GIB))
    assert set(grades(sample_hardware(), bare, None).values()) == {"unknown"}


SMALL = sample_disk(size_bytes=99 * GIB)
LARGE_SECTORS = sample_disk(sector_bytes=4096)
USB_STICK = sample_disk(name="sdb", is_candidate=False)


@pytest.mark.parametrize(
    ("disks", "wrong"),
    [
        ((SMALL,), {"disk": "refuse", "sectors": "unknown", "health": "unknown"}),
        ((LARGE_SECTORS,), {"sectors": "refuse", "health": "unknown"}),
        ((), {"disk": "refuse", "sectors": "unknown", "health": "unknown"}),
        ((USB_STICK,), {"disk": "refuse", "sectors": "unknown", "health": "unknown"}),
        ((SMALL, LARGE_SECTORS, sample_disk(name="sdc")), {}),
        ((sample_disk(size_bytes=100 * GIB),), {}),
        ((sample_disk(health=DiskHealth(SmartVerdict.FAILING)),), {"health": "warn"}),
        ((sample_disk(health=DiskHealth(SmartVerdict.PASSED, 104)),), {"health": "warn"}),
        ((sample_disk(health=DiskHealth()),), {"health": "unknown"}),
    ],
)
def test_one_disk_that_fits_is_enough(disks: tuple[object, ...], wrong: dict[str, str]) -> None:
    assert grades(sample_hardware(disks=disks)) == wrong


def test_a_target_that_is_a_file_is_left_to_the_agent() -> None:
    found = grades(sample_hardware(disks=(), target="/tmp/x", target_is_file=True))
    assert "refuse" not in found.values()


@pytest.mark.parametrize(
    ("own", "wanted", "grade"),
    [
        ("x86_64", "x86_64", None),
        ("x86_64", "i686", None),
        ("i686", "x86_64", "refuse"),
        ("x86_64", "aarch64", "refuse"),
        ("aarch64", "armv7l", None),
        ("riscv64", "riscv64", None),
        ("riscv64", "", "unknown"),
    ],
)
def test_programs_run_on_their_architecture(own: str, wanted: str, grade: str | None) -> None:
    image = dataclasses.replace(IMAGE, architecture=wanted)
    assert grades(sample_hardware(architecture=own), image).get("architecture") == grade


@pytest.mark.parametrize(
    ("firmware", "wanted", "grade"),
    [
        (FirmwareKind.BIOS, (FirmwareKind.UEFI,), "warn"),
        (FirmwareKind.UEFI, (FirmwareKind.BIOS,), "warn"),
        (FirmwareKind.BIOS, (FirmwareKind.UEFI, FirmwareKind.BIOS), None),
        (FirmwareKind.BIOS, (), None),
        (FirmwareKind.UNKNOWN, (FirmwareKind.UEFI,), "unknown"),
    ],
)
def test_another_firmware_is_a_warning(
    firmware: FirmwareKind, wanted: tuple[FirmwareKind, ...], grade: str | None
) -> None:
    image = dataclasses.replace(IMAGE, firmwares=wanted)
    assert grades(sample_hardware(firmware=firmware), image).get("firmware") == grade


@pytest.mark.parametrize(
    ("memory_bytes", "grade"), [(0, "unknown"), (300 * MIB, "warn"), (340 * MIB, None), (8 * GIB, None)]
)
def test_too_little_memory_is_a_warning(memory_bytes: int, grade: str | None) -> None:
    assert grades(sample_hardware(memory_bytes=memory_bytes)).get("memory") == grade


def test_secure_boot_wants_a_signed_loader() -> None:
    unsigned = dataclasses.replace(IMAGE, signed_loader=False)
    assert grades(sample_hardware(), unsigned) == {"secure boot": "warn"}
    assert grades(sample_hardware(secure_boot=False), unsigned) == {}
    assert grades(sample_hardware(), dataclasses.replace(IMAGE, signed_loader=None)) == {
        "secure boot": "unknown"
    }


def test_drivers_only_ever_warn() -> None:
    other = sample_card(device_id="10ec:8125", modalias="pci:v000010ECd00008125sv*bc02")
    raid = HardwareController("", "8086:9a0b", "pci:v00008086d00009A0B")
    for wrong in (
        sample_hardware(cards=(other,)),
        sample_hardware(cards=(sample_card(name="", driver=""),)),
        sample_hardware(controllers=(HardwareController("vmd", raid.device_id, raid.modalias),)),
    ):
        assert grades(wrong) == {"drivers": "warn"}
    assert grades(sample_hardware(), drivers=None) == {"drivers": "unknown"}
    assert grades(sample_hardware(controllers=(raid,))) == {}, "no disk of this machine needs it"
    refused = judge_machine(IMAGE, sample_hardware(disks=(), controllers=(raid,)), DRIVERS)
    assert "no driver uses its disk controller 8086:9a0b" in refusal_text(refused)
    assert (
        grades(
            sample_hardware(cards=(other,)), drivers=DriverAliases(["pci:v000010ECd*", "pci:v*bc01sc06i01*"])
        )
        == {}
    )


def test_patterns_match_as_the_kernel_matches_them() -> None:
    assert DRIVERS.has_driver(E1000E)
    assert DRIVERS.has_driver(AHCI), "a pattern of a class of devices"
    assert not DRIVERS.has_driver("pci:v00008086d000015FBsv*")
    assert DriverAliases(["virtio:d00000001v*"]).has_driver("virtio:d00000001v00001AF4")
    assert DriverAliases(["usb:v0BDAp8153d*dc*dsc*dp*icFFisc*ip*in*"]).has_driver(
        "usb:v0BDAp8153d3000dc00dsc00dp00icFFiscFFip00in00"
    )
    assert not DriverAliases([]).has_driver(E1000E)


def test_the_worst_grade_counts_and_only_refusals_are_reasons() -> None:
    checks = judge_machine(IMAGE, sample_hardware(disks=(SMALL,), memory_bytes=MIB), DRIVERS)
    assert worst_grade(checks) is Grade.REFUSE
    text = refusal_text(checks)
    assert "sda (99.0 GiB) is smaller than the image, 100.0 GiB: use a larger disk" in text
    assert "memory" not in text
    assert refusal_text(judge_machine(IMAGE, sample_hardware(memory_bytes=MIB), DRIVERS)) == ""
    assert worst_grade(()) is Grade.OK
    assert worst_grade(judge_machine(IMAGE, None)) is Grade.UNKNOWN


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        (layout(TableKind.GPT, EFI_GUID, LINUX_GUID), ("uefi",)),
        (layout(TableKind.GPT, EFI_GUID, BIOS_BOOT), ("uefi", "bios")),
        (layout(TableKind.GPT, BIOS_BOOT, LINUX_GUID), ("bios",)),
        (layout(TableKind.GPT, LINUX_GUID), ()),
        (layout(TableKind.MBR, "0x83"), ("bios",)),
        (layout(TableKind.MBR, "0xEF", "0x83"), ("uefi", "bios")),
        (layout(TableKind.NONE), ()),
        (None, ()),
    ],
)
def test_the_firmware_by_which_an_image_starts(table: DiskLayout | None, wanted: tuple[str, ...]) -> None:
    assert firmwares_of(table) == wanted


def test_sectors_count_where_the_image_counts_in_them() -> None:
    ntfs = dataclasses.replace(layout(TableKind.NONE), filesystem="ntfs")
    ext4 = dataclasses.replace(ntfs, filesystem="ext4")
    assert sector_problem(sector_needs(GPT, 512, GIB), 512) is None
    assert sector_problem(sector_needs(GPT, 4096, GIB), 4096) is not None, "the table counts, not the disk"
    assert sector_problem(sector_needs(ntfs, 512, GIB), 4096) is not None
    assert sector_problem(sector_needs(ext4, 512, GIB), 4096) is None
    assert sector_problem(sector_needs(None, 512, GIB), 4096) is not None
    assert sector_problem(sector_needs(None, None, GIB + 512), 4096) is not None
