"""A disk image with a Debian of its own, as an administrator would make one: systemd, a kernel with its initramfs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.constants import MIB
from tests.support.machines.bootable_image import (
    SYSTEMD_BOOT,
    UefiLoaders,
    assemble_image,
    make_ext4,
    make_fat,
)
from tests.support.machines.virtual_machine import NO_TIMER_CHECK
from tests.support.network.lab import run
from tests.support.programs.processes import require_program

LABEL: Final = "dcdebian"
HOST_NAME: Final = "debian-pc"
PROMPT: Final = f"{HOST_NAME} login:"
_PACKAGES: Final = ("linux-image-cloud-amd64", "systemd-sysv", "udev", "initramfs-tools", "zstd")
_FAT_BYTES: Final = 128 * MIB
_EXT4_BYTES: Final = 1024 * MIB
_BUILD_LIMIT_S: Final = 900.0


def make_debian_image(
    path: Path, *, packages: Sequence[str] = (), uefi_loaders: UefiLoaders = SYSTEMD_BOOT
) -> Path:
    """Create the raw image ``path`` and return it: downloads packages and takes minutes; needs root.

    Args:
        path: the image; a folder beside it holds the parts.
        packages: further packages.
        uefi_loaders: loaders for UEFI.
    """
    work = path.with_name(f"{path.name}-parts")
    work.mkdir(parents=True)
    tree = work / "system"
    mmdebstrap = require_program("mmdebstrap")
    options = ("--quiet", "--variant=minbase", "--mode=root", "--format=directory")
    included = ",".join((*_PACKAGES, *packages))
    run(mmdebstrap, *options, f"--include={included}", "bookworm", tree, timeout_s=_BUILD_LIMIT_S)
    (tree / "etc/hostname").write_text(f"{HOST_NAME}\n")
    (tree / "etc/fstab").write_text(f"LABEL={LABEL} / ext4 defaults 0 1\n")
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    (initrd,) = (tree / "boot").glob("initrd.img-*")
    command_line = f"root=LABEL={LABEL} ro console=ttyS0 quiet {NO_TIMER_CHECK}"
    fat = make_fat(work, kernel, initrd, command_line, size_bytes=_FAT_BYTES, uefi_loaders=uefi_loaders)
    ext4 = make_ext4(work, tree, label=LABEL, size_bytes=_EXT4_BYTES)
    assemble_image(path, fat, ext4)
    shutil.rmtree(work)
    return path
