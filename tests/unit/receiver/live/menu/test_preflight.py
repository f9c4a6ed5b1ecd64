"""The preflight: a technician sees every reason against an image before anything is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from protocol.constants import GIB, MIB
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.model.hardware import FirmwareKind
from protocol.preflight.judgement import Grade
from protocol.trust.image_policy import AcceptedImage
from receiver.disk.inventory.disk_contents import DiskContents
from receiver.live.menu.choices import COLUMNS
from receiver.live.menu.preflight import (
    ImageFacts,
    MenuCheck,
    check_all,
    refused,
    report,
)
from receiver.restore.listed_disks import ListedDisk
from receiver.target.eligibility import ImageNeeds, judge
from tests.support.disks.disk_layouts import EFI_GUID, LINUX_GUID
from tests.support.hardware import sample_hardware
from tests.support.network.fake_machine import FakeMachine

ALLOWED = AcceptedImage(bytes(32), "lab", None, "unsigned")
MACHINE = sample_hardware(memory_bytes=2 * GIB)


def layout(table: TableKind, *types: str) -> DiskLayout:
    parts = tuple(Partition(number, number * MIB, MIB, kind) for number, kind in enumerate(types, 1))
    return DiskLayout(table, 512, parts)


IMAGE = ImageFacts("lab", GIB, layout(TableKind.GPT, EFI_GUID, LINUX_GUID))


@pytest.fixture
def listed(tmp_path: Path) -> ListedDisk:
    machine = FakeMachine(tmp_path)
    machine.disk("sda", "8:0", files={"device/model": "Samsung SSD", "serial": "S1"})
    return ListedDisk(machine.device("sda"), DiskContents("GPT: ntfs"), None)


def grades(checks: list[MenuCheck]) -> dict[str, Grade]:
    return {check.subject: check.grade for check in checks}


def test_all_is_well_but_the_disk_is_erased(listed: ListedDisk) -> None:
    checks = check_all(IMAGE, ALLOWED, listed, MACHINE)
    assert grades(checks) == {
        "signature": Grade.WARN,
        "disk": Grade.OK,
        "firmware": Grade.OK,
        "memory": Grade.OK,
        "erases": Grade.WARN,
    }
    text = " ".join(report(checks).split())
    assert "serial S1; it holds GPT: ntfs" in text
    assert all(len(line) <= COLUMNS for line in report(checks).splitlines())


def test_an_image_that_this_machine_does_not_trust_is_refused(listed: ListedDisk) -> None:
    checks = check_all(IMAGE, "no trusted key signed it", listed, MACHINE)
    assert refused(checks)
    assert "no trusted key signed it" in report(checks)


def test_a_refused_disk_is_refused(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.disk("sda", "8:0", size_bytes=GIB)
    device = machine.device("sda")
    refusal = judge(device, machine.inventory(), ImageNeeds(2 * GIB), probe=machine.probe)
    checks = check_all(IMAGE, ALLOWED, ListedDisk(device, DiskContents("x"), refusal), MACHINE)
    assert refused(checks)
    assert grades(checks)["disk"] is Grade.REFUSE


def test_a_stick_is_questioned(listed: ListedDisk) -> None:
    """The boot stick itself is usable as far as the kernel knows: the live system runs in memory."""
    stick = dataclasses.replace(listed, disk=dataclasses.replace(listed.disk, removable=True))
    assert grades(check_all(IMAGE, ALLOWED, stick, MACHINE))["disk"] is Grade.WARN


def test_another_firmware_and_little_memory_are_warnings(listed: ListedDisk) -> None:
    found = grades(
        check_all(IMAGE, ALLOWED, listed, sample_hardware(firmware=FirmwareKind.BIOS, memory_bytes=300 * MIB))
    )
    assert (found["firmware"], found["memory"]) == (Grade.WARN, Grade.WARN)
    unknown = check_all(
        dataclasses.replace(IMAGE, layout=None),
        ALLOWED,
        listed,
        sample_hardware(firmware=FirmwareKind.BIOS, memory_bytes=0),
    )
    assert grades(unknown)["firmware"] is Grade.OK
