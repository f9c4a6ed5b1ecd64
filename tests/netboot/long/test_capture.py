"""A bare machine that boots the network into a capture: its disk becomes an image, and it boots its disk again.

Lost if this fails: an administrator who has no image yet stands in front of the reference PC, and the first step of
every introduction doesn't work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.machines.bootable_image import signed_loaders
from tests.support.machines.micro_image import PROMPT, make_micro_image
from tests.support.machines.netboot_room import AGENT_STARTED, BOOT_LIMIT_S, CAST_LIMIT_S, NetbootRoom
from tests.support.machines.virtual_machine import (
    BootOrder,
    Disk,
    Firmware,
    MachineSpec,
    VirtualMachine,
)
from tests.support.network.lab import Program, run

pytestmark = pytest.mark.needs_root

_UNUSED_BYTES: Final = 512 << 20
"""Space behind the partitions of the reference disk: no part of the image."""


@pytest.fixture(scope="module")
def services(room: NetbootRoom, medium: Path) -> Iterator[Program]:
    with room.start_boot_services(medium) as services:
        yield services


@pytest.fixture(scope="module")
def reference_raw(room: NetbootRoom, medium: Path) -> Path:
    return make_micro_image(
        room.folder / "reference.raw", medium, uefi_loaders=signed_loaders(medium), seed=2
    )


def _reference_disk(raw: Path, path: Path) -> Disk:
    """Return a disk that is larger than its partitions, as that of a real PC."""
    with raw.open("rb") as source, path.open("xb") as file:
        while chunk := source.read(1 << 20):
            file.write(chunk)
        file.truncate(raw.stat().st_size + _UNUSED_BYTES)
    run("sgdisk", "--move-second-header", path)
    return Disk(path, serial="REFERENCE")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _capture(
    room: NetbootRoom, spec: MachineSpec, machine_name: str, image: str, boot: str
) -> dict[str, Any]:
    """Plan a capture, boot the machine until its disk's own system runs again, and return the capture."""
    watch = room.start("machines", "capture", machine_name, "--name", image, "--watch", "--json")
    watch.wait_event("capture", BOOT_LIMIT_S)
    with VirtualMachine(room.network, 0, spec, name=boot) as machine:
        booted = machine.console.wait_for(AGENT_STARTED, BOOT_LIMIT_S)
        machine.console.wait_for(PROMPT, CAST_LIMIT_S + BOOT_LIMIT_S, after=booted)
        assert watch.wait(CAST_LIMIT_S) == 0, watch.describe()
        assert machine.console.text.count(AGENT_STARTED) == 1
    return watch.result


@pytest.mark.parametrize("firmware", [Firmware.BIOS, Firmware.UEFI])
def test_a_machine_boots_into_its_capture_and_then_its_disk(
    firmware: Firmware, room: NetbootRoom, services: Program, reference_raw: Path, tmp_path: Path
) -> None:
    name = f"reference-{firmware}"
    disk = _reference_disk(reference_raw, tmp_path / "disk")
    before = _sha256(disk.path)
    packed = tmp_path / "local.dci"
    room.command("pack", disk.path, "-o", packed, "--name", name, "--no-sign")
    spec = MachineSpec(firmware, disks=(disk,), boot_order=BootOrder.NETWORK)
    room.create_room(name, {name: 0})
    capture = _capture(room, spec, name, name, name)
    image = Path(capture["location"])
    assert image.parent == room.images
    assert capture["disk_serial"] == "REFERENCE"
    assert image.read_bytes() == packed.read_bytes()
    listed = next(one for one in room.ask("images", "list") if one["image_id"] == capture["image_id"])
    assert (listed["name"], listed["state"]) == (name, "available")
    assert _sha256(disk.path) == before

    # A second capture of the same disk uploads nothing. Then nothing is planned, and the machine boots its disk.
    again = _capture(room, spec, name, name, f"{name}-again")
    assert again["image_id"] == capture["image_id"]
    assert again["uploaded_bytes"] < capture["uploaded_bytes"] / 100
    with VirtualMachine(room.network, 0, spec, name=f"{name}-afterwards") as machine:
        machine.console.wait_for(PROMPT, BOOT_LIMIT_S)
        assert AGENT_STARTED not in machine.console.text
    room.remove_room(name)
