"""The loader of the disk: a failure would send a UEFI machine with nothing to do through every other boot entry."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from sender.netboot.build.disk_loader import GRUB_MODULES, GRUB_PROGRAM, make_disk_loader
from sender.netboot.disk_boot import DISK_LOADERS, grub_disk_commands
from tests.support.programs.processes import require_program

SYSTEM = Path("/")


def _require_grub() -> None:
    require_program("grub-mkimage")
    if not (SYSTEM / GRUB_MODULES).is_dir():
        pytest.skip("GRUB's modules for UEFI aren't installed: apt install grub-efi-amd64-bin")


def test_equal_packages_give_an_equal_loader_with_the_script_inside(tmp_path: Path) -> None:
    _require_grub()
    first, second = tmp_path / "first.efi", tmp_path / "second.efi"
    for target in (first, second):
        make_disk_loader(SYSTEM, target)
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert content.startswith(b"MZ")
    assert "\n".join(grub_disk_commands("nothing to do")).encode() in content


def test_a_newer_release_is_linked_by_this_machines_program(tmp_path: Path) -> None:
    """The release's own program needs a newer C library than this machine's."""
    _require_grub()
    modules = tmp_path / GRUB_MODULES
    modules.parent.mkdir(parents=True)
    modules.symlink_to(SYSTEM / GRUB_MODULES)
    program = tmp_path / GRUB_PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'libc.so.6: version `GLIBC_2.38 not found' >&2\nexit 1\n")
    program.chmod(0o755)
    make_disk_loader(tmp_path, tmp_path / "newer.efi")
    make_disk_loader(SYSTEM, tmp_path / "own.efi")
    assert (tmp_path / "newer.efi").read_bytes() == (tmp_path / "own.efi").read_bytes()


def test_a_program_that_does_not_run_is_named_with_the_package(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="grub-common"):
        make_disk_loader(tmp_path, tmp_path / "disk.efi")
    program = tmp_path / GRUB_PROGRAM
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'libdevmapper.so.1.02.1: cannot open' >&2\nexit 127\n")
    program.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"libdevmapper.*grub-common"):
        make_disk_loader(tmp_path, tmp_path / "disk.efi")


def test_the_default_loader_of_a_disk_comes_last() -> None:
    """Beside a ``fbx64.efi`` it rewrites the firmware's boot order."""
    assert DISK_LOADERS[-1] == "/EFI/BOOT/BOOTX64.EFI"
