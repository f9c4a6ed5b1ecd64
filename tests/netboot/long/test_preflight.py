"""The preflight of real firmware, disks and cards: the matrix, and a cast that leaves the misfits alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks.kernel_modules import BUILTIN, DEPENDENCIES
from tests.support.machines.netboot_room import BOOT_LIMIT_S, CAST_LIMIT_S, NetbootRoom
from tests.support.machines.virtual_machine import (
    BootOrder,
    Disk,
    Firmware,
    MachineSpec,
    VirtualMachine,
)
from tests.support.network.lab import LabError, run

pytestmark = pytest.mark.needs_root

MIB = 1 << 20
ROOM = "odd"
DISK_BYTES = 512 * MIB
FOUR_KN = "virtio-blk-pci,logical_block_size=4096,physical_block_size=4096"
ALIASES = b"alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\n"
VIRTIO_PCI = b"kernel/drivers/virtio/virtio_pci.ko:\n"


TAPS = {"fits": 0, "small": 1, "4kn": 2, "old": 3}


@pytest.fixture(scope="module")
def odd_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetbootRoom]:
    """A room of its own with a network port for each machine, and the boot services."""
    with NetbootRoom(tmp_path_factory.mktemp("odd"), tap_count=len(TAPS)) as room:
        medium = room.build_medium(room.folder / "medium", "--cloud", "--quick")
        with room.start_boot_services(medium):
            yield room


@pytest.fixture(scope="module")
def uefi_image(odd_room: NetbootRoom, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of an image that starts by UEFI only, with drivers for virtio devices."""
    folder = tmp_path_factory.mktemp("uefi")
    modules = folder / "root/lib/modules/6.1.0-1-amd64"
    modules.mkdir(parents=True)
    (modules / "modules.alias").write_bytes(ALIASES)
    (modules / "modules.dep").write_bytes(VIRTIO_PCI + DEPENDENCIES)
    (modules / "modules.builtin.modinfo").write_bytes(BUILTIN)
    disk, root = folder / "disk.raw", folder / "root.raw"
    for path, size in ((disk, 200), (root, 128)):
        with path.open("wb") as file:
            file.truncate(size * MIB)
    run(
        "sfdisk",
        "--quiet",
        disk,
        text="label: gpt\nstart=1MiB, size=32MiB, type=uefi\nstart=33MiB, size=128MiB\n",
    )
    subprocess.run(["mkfs.ext4", "-q", "-d", folder / "root", root], check=True)
    with disk.open("r+b") as file:
        file.seek(33 * MIB)
        file.write(root.read_bytes())
    odd_room.add_image(disk, "uefi-only")
    return "uefi-only"


def specs(folder: Path) -> dict[str, MachineSpec]:
    def disk(name: str, size_bytes: int = DISK_BYTES, model: str = "virtio-blk-pci") -> tuple[Disk, ...]:
        return (Disk.blank(folder / name, size_bytes, model=model),)

    by_network = BootOrder.NETWORK
    return {
        "fits": MachineSpec(Firmware.UEFI, disk("fits"), boot_order=by_network),
        "small": MachineSpec(Firmware.UEFI, disk("small", 100 * MIB), boot_order=by_network),
        "4kn": MachineSpec(Firmware.UEFI, disk("4kn", model=FOUR_KN), boot_order=by_network),
        # BIOS, little memory, and a card for which the live system's cloud kernel has no driver.
        "old": MachineSpec(
            disks=disk("old"), memory_mib=368, boot_order=by_network, extra=("-device", "rtl8139")
        ),
    }


def checks_of(room: NetbootRoom, image: str, name: str) -> dict[str, str]:
    """Return the subjects of a machine's refusals and warnings; the command fails if there is a refusal."""
    try:
        output = room.command("casts", "preflight", "--image", image, "--machine", name, "--json")
    except LabError as error:
        output = str(error)
    [row] = [json.loads(line) for line in output.splitlines() if line.startswith('{"event": "machine"')]
    return {
        check["subject"]: check["grade"] for check in row["checks"] if check["grade"] in ("warn", "refuse")
    }


def test_misfits_are_found_excluded_and_left_as_they_are(
    odd_room: NetbootRoom, uefi_image: str, tmp_path: Path
) -> None:
    room, machines = odd_room, specs(tmp_path)
    room.create_room(ROOM, TAPS)
    for name, spec in machines.items():
        room.command("machines", "boot", name, "--live")
        with VirtualMachine(room.network, TAPS[name], spec, name=name) as machine:
            machine.console.wait_for("waiting for a cast", BOOT_LIMIT_S)
    assert {name: checks_of(room, uefi_image, name) for name in TAPS} == {
        "fits": {},
        "small": {"disk": "refuse"},
        "4kn": {"sectors": "refuse"},
        "old": {"firmware": "warn", "memory": "warn", "drivers": "warn"},
    }
    # The cast must not wait for the machine that doesn't fit: it has no other limit.
    only = ("--machine", "fits", "--machine", "4kn", "--max-wait", "never")
    with (
        room.cast_to(uefi_image, ROOM, *only) as cast,
        VirtualMachine(room.network, TAPS["fits"], machines["fits"], name="fits-cast"),
        VirtualMachine(room.network, TAPS["4kn"], machines["4kn"], name="4kn-cast"),
    ):
        cast.wait(2 * BOOT_LIMIT_S + CAST_LIMIT_S)
    [ended] = room.ask("casts", "list", "--limit", "1")[:1]
    assert (ended["complete_count"], ended["failed_count"]) == (1, 1)
    assert not machines["fits"].disks[0].is_blank
    for name in ("small", "4kn", "old"):
        assert machines[name].disks[0].is_blank, f"{name} was written to"
    room.remove_room(ROOM)
