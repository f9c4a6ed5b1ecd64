"""The command line of QEMU for an image: firmware and disk by the layout, refusals with the package to install."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from protocol.constants import MIB
from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.errors import ConfigurationError, MissingDependencyError
from sender.export import virtual_machine
from sender.export.accelerator import Accelerator
from sender.export.virtual_machine import (
    DiskModel,
    VmFirmware,
    VmOptions,
    firmware_for,
    run_virtual_machine,
)
from sender.export.vm_command import vm
from sender.imaging.image_file import ImageFile
from tests.support.disks.disk_images import MadeImage, make_image

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"


def image_with(*types: str, table: TableKind = TableKind.GPT, sector_bytes: int = 512) -> MadeImage:
    parts = tuple(Partition(index, index * MIB, MIB, kind) for index, kind in enumerate(types, 1))
    layout = DiskLayout(table, sector_bytes, parts)
    metadata = {"layout": layout_metadata(layout), "logical_sector_bytes": sector_bytes}
    return make_image("dz", metadata=metadata)


def arguments(made: MadeImage, options: VmOptions, firmware: VmFirmware = VmFirmware.BIOS) -> str:
    files = virtual_machine._Files(7, 8, 9)
    return " ".join(virtual_machine._arguments(made.manifest, options, firmware, Accelerator.TCG, files))


def test_firmware_follows_the_layout() -> None:
    assert firmware_for(image_with(ESP, LINUX).manifest) is VmFirmware.UEFI
    assert firmware_for(image_with("0xEF", table=TableKind.MBR).manifest) is VmFirmware.UEFI
    assert firmware_for(image_with("0x83", table=TableKind.MBR).manifest) is VmFirmware.BIOS
    assert firmware_for(image_with(LINUX).manifest) is VmFirmware.BIOS
    assert firmware_for(make_image("dz").manifest) is VmFirmware.BIOS  # an older image, without a layout


def test_disk_of_4096_byte_sectors_keeps_them() -> None:
    """A disk with other sectors has no partitions for its guest."""
    made = image_with(ESP, sector_bytes=4096)
    assert "nvme,drive=disk" in arguments(made, VmOptions())
    assert "logical_block_size=4096" in arguments(made, VmOptions(disk_model=DiskModel.VIRTIO))
    with pytest.raises(ConfigurationError, match="--disk nvme"):
        arguments(made, VmOptions(disk_model=DiskModel.SATA))


def test_machine_has_no_network_unless_asked_and_no_way_out_of_qemu() -> None:
    shown = arguments(image_with(ESP), VmOptions())
    assert "-nic none" in shown
    assert "spawn=deny" in shown
    assert "read-only=on,server.type=fd,server.str=7" in shown
    assert "-nic user" in arguments(image_with(ESP), VmOptions(network=True))


def test_missing_programs_are_named_with_their_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image_with(ESP).write(tmp_path / "a.dci")
    options = VmOptions(serial=True)
    with ImageFile.open(path) as image:
        with monkeypatch.context() as patch:
            patch.setattr(virtual_machine, "find_tool", lambda _name: None)
            with pytest.raises(MissingDependencyError, match="apt install qemu-system-x86"):
                run_virtual_machine(image, options)
        with monkeypatch.context() as patch:
            patch.setattr(virtual_machine, "OVMF_CODE", tmp_path / "none")
            with pytest.raises(MissingDependencyError, match="apt install ovmf"):
                run_virtual_machine(image, options)
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        with pytest.raises(ConfigurationError, match="use --serial"):
            run_virtual_machine(image, VmOptions())


@pytest.mark.parametrize("option", ["--memory=1MiB", "--cpus=0", "--cpus=1000"])
def test_impossible_machines_are_refused(option: str, tmp_path: Path) -> None:
    path = image_with(ESP).write(tmp_path / "a.dci")
    result = CliRunner().invoke(vm, [str(path), "--serial", option])
    assert isinstance(result.exception, ConfigurationError)
