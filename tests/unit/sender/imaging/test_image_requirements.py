"""Requirements that images show. If these fail, machines are warned about or refused for the wrong reason."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from protocol.preflight.requirements import DriverAliases
from sender.imaging.contents import image_requirements
from sender.imaging.contents.image_contents import read_contents
from sender.imaging.contents.image_requirements import (
    FoundRequirements,
    driver_aliases_untrusted,
    read_requirements_untrusted,
)
from tests.support.disks.kernel_modules import ALIAS, BUILTIN, DEPENDENCIES
from tests.unit.sender.imaging.test_image_contents import make, packed, reader

ELF_AARCH64 = b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + struct.pack("<H", 183) + bytes(44)


def test_only_drivers_of_cards_and_controllers_count() -> None:
    assert driver_aliases_untrusted(ALIAS, DEPENDENCIES, BUILTIN) == (
        "pci:v00008086d000015FAsv*sd*bc*sc*i*",
        "pci:v*d*sv*sd*bc01sc06i01*",
        "usb:v0BDAp8153d*dc*dsc*dp*icFFisc*ip*in*",
        "virtio:d00000001v*",
    )
    assert driver_aliases_untrusted(ALIAS, b"", b"") is None


def test_a_list_that_is_too_long_is_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut one would warn about devices that have a driver."""
    monkeypatch.setattr(image_requirements, "DRIVER_ALIASES_MAX", 2)
    assert driver_aliases_untrusted(ALIAS, DEPENDENCIES, BUILTIN) is None


def system_tree(folder: Path) -> Path:
    """Return a root folder with a shell for another architecture and two kernels."""
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "bin").symlink_to("usr/bin")
    (folder / "usr/bin/dash").write_bytes(ELF_AARCH64)
    (folder / "usr/bin/sh").symlink_to("dash")
    (folder / "lib").symlink_to("usr/lib")
    for version, alias in (("6.1.0-9-arm64", b"alias pci:v0000DEADd* e1000e\n"), ("6.1.0-25-arm64", ALIAS)):
        modules = folder / "usr/lib/modules" / version
        modules.mkdir(parents=True)
        (modules / "modules.alias").write_bytes(alias)
        (modules / "modules.dep").write_bytes(DEPENDENCIES)
        (modules / "modules.builtin.modinfo").write_bytes(BUILTIN)
    return folder


def test_a_root_filesystem_shows_architecture_and_the_newest_kernels_drivers(tmp_path: Path) -> None:
    root = system_tree(tmp_path / "root")
    with packed(make("ext4", tmp_path / "disk", "-d", root), tmp_path / "image.dci") as image:
        contents = read_contents(image)
    required = contents.requirements
    assert (required.architecture, required.drivers_known, required.signed_loader) == ("aarch64", True, None)
    assert required.raw_bytes == 128 << 20
    aliases = contents.driver_aliases()
    assert aliases is not None
    drivers = DriverAliases(aliases)
    assert drivers.has_driver("pci:v00008086d000015FAsv00001028sd00000A36bc02sc00i00")
    assert drivers.has_driver("virtio:d00000001v00001AF4")
    assert not drivers.has_driver("pci:v0000DEADd00000001")


def test_an_image_without_a_system_shows_nothing(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with packed(make("ext4", tmp_path / "disk", "-d", tmp_path / "root"), tmp_path / "image.dci") as image:
        contents = read_contents(image)
    assert (contents.requirements.architecture, contents.driver_aliases()) == ("", None)
    assert contents.requirements.firmwares == ()


@pytest.mark.skipif(shutil.which("mcopy") is None, reason="mtools isn't installed")
@pytest.mark.parametrize(
    ("files", "found"),
    [
        ((), FoundRequirements()),
        (("EFI/BOOT/BOOTX64.EFI",), FoundRequirements("x86_64", signed_loader=False)),
        (
            ("EFI/BOOT/BOOTAA64.EFI", "EFI/debian/shimaa64.efi"),
            FoundRequirements("aarch64", signed_loader=True),
        ),
        (("EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/BOOTIA32.EFI"), FoundRequirements("", signed_loader=False)),
        (("EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/mmx64.efi"), FoundRequirements("x86_64", signed_loader=True)),
    ],
)
def test_an_efi_partition_shows_its_loaders(
    tmp_path: Path, files: tuple[str, ...], found: FoundRequirements
) -> None:
    disk = make("vfat", tmp_path / "esp")
    folders = {"/".join(file.split("/")[:depth]) for file in files for depth in (1, 2)}
    for folder in sorted(folders):
        subprocess.run(["mmd", "-i", disk, f"::/{folder}"], check=True)
    (tmp_path / "loader").write_bytes(b"MZ")
    for file in files:
        subprocess.run(["mcopy", "-i", disk, tmp_path / "loader", f"::/{file}"], check=True)
    assert read_requirements_untrusted("vfat", reader(disk)) == found
