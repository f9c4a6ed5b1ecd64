"""A disk image of 96 MiB that boots to ``login:`` on BIOS and UEFI, small enough to be cast in seconds.

Its kernel, modules and busybox are those of a boot medium.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Mapping
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

LABEL: Final = "dcmicro"
HOST_NAME: Final = "deployed"
PROMPT: Final = f"{HOST_NAME} login:"
MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "nvme",
    "ahci",
    "crc32c_generic",
    "ext4",
)
"""Modules that find the disk and mount it; a medium may not have all of them."""
_FAT_BYTES: Final = 64 * MIB
_EXT4_BYTES: Final = 30 * MIB
_PAYLOAD_BYTES: Final = 16 * MIB
"""Bytes that don't compress: the cast must last long enough for progress to be seen."""
_COMMAND_LINE: Final = f"ro console=ttyS0 quiet {NO_TIMER_CHECK}"
_INITTAB: Final = """\
::sysinit:/bin/mount -t proc proc /proc
::sysinit:/bin/mount -t sysfs sysfs /sys
::sysinit:/bin/hostname -F /etc/hostname
ttyS0::respawn:/bin/getty -L ttyS0 115200 vt100
"""
_INIT: Final = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in {modules}; do insmod /m/$module; done
tries=0
until root=$(findfs LABEL={label} 2>/dev/null); do
  tries=$((tries + 1)); [ $tries -gt 300 ] && {{ echo "micro image: no disk found"; exec sh; }}; sleep 0.1
done
echo "micro image: root is $root" > /dev/ttyS0
mount -t ext4 -o ro "$root" /new || exec sh
umount /proc; umount /sys; mount --move /dev /new/dev; exec switch_root /new /sbin/init
"""


def make_micro_image(
    path: Path, medium: Path, *, uefi_loaders: UefiLoaders = SYSTEMD_BOOT, seed: int = 1
) -> Path:
    """Create the raw image ``path`` and return it.

    Args:
        path: the image; a folder beside it holds the parts.
        medium: folder of a built boot medium.
        uefi_loaders: loaders for UEFI.
        seed: of the content that doesn't compress.
    """
    work = path.with_name(f"{path.name}-parts")
    work.mkdir(parents=True)
    busybox, modules = _parts_of_medium(medium, work)
    initrd = _make_initrd(work, busybox, modules)
    kernel = medium / "vmlinuz"
    fat = make_fat(work, kernel, initrd, _COMMAND_LINE, size_bytes=_FAT_BYTES, uefi_loaders=uefi_loaders)
    ext4 = make_ext4(work, _make_system(work, busybox, seed), label=LABEL, size_bytes=_EXT4_BYTES)
    assemble_image(path, fat, ext4)
    shutil.rmtree(work)
    return path


def _parts_of_medium(medium: Path, work: Path) -> tuple[Path, list[Path]]:
    """Return busybox and the modules that the image needs, in the order of their loading."""
    unsquashfs = require_program("unsquashfs")
    squashfs = work / "root.sqfs"
    with (medium / "initrd").open("rb") as initrd, squashfs.open("wb") as output:
        argv = [require_program("cpio"), "--quiet", "--extract", "--to-stdout", "root.sqfs", "./root.sqfs"]
        subprocess.run(argv, stdin=initrd, stdout=output, check=True)
    listing = run(unsquashfs, "-ls", "-d", "", squashfs).splitlines()
    busybox = next(name for name in listing if re.fullmatch(r"/(usr/)?bin/busybox", name))
    index = next(name for name in listing if name.endswith("/modules.dep"))
    root = work / "root"
    extract = (unsquashfs, "-quiet", "-no-progress", "-no-xattrs", "-force", "-d", root, squashfs)
    run(*extract, busybox, index)
    needs = _module_needs((root / index[1:]).read_text())
    order: list[str] = []
    for module in MODULES:
        name = next((name for name in needs if Path(name).name.split(".")[0] == module), None)
        if name is not None:  # else it is built into the kernel, or the medium is for other machines
            order += [needed for needed in (*reversed(needs[name]), name) if needed not in order]
    folder = index.removesuffix("modules.dep")
    run(*extract, *(folder + name for name in order))
    squashfs.unlink()
    return root / busybox[1:], [root / folder[1:] / name for name in order]


def _module_needs(modules_dep: str) -> Mapping[str, list[str]]:
    """Return each module's file with those of the modules that it needs, the nearest first."""
    parts = (line.partition(":") for line in modules_dep.splitlines())
    return {name: needs.split() for name, _, needs in parts}


def _make_initrd(work: Path, busybox: Path, modules: list[Path]) -> Path:
    tree = work / "initrd-tree"
    for name in ("bin", "dev", "proc", "sys", "m", "new"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin/busybox")
    for module in modules:
        shutil.copy(module, tree / "m")
    init = tree / "init"
    init.write_text(_INIT.format(modules=" ".join(module.name for module in modules), label=LABEL))
    init.chmod(0o755)
    initrd = work / "initrd"
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    argv = [require_program("cpio"), "--quiet", "--create", "--format=newc", "--owner=0:0", "--reproducible"]
    with initrd.open("wb") as output:
        subprocess.run(argv, input=names.encode(), stdout=output, cwd=tree, check=True)
    run(require_program("zstd"), "-q", "-3", "--rm", initrd, "-o", work / "initrd.zst")
    return work / "initrd.zst"


def _make_system(work: Path, busybox: Path, seed: int) -> Path:
    tree = work / "system"
    for name in ("bin", "sbin", "dev", "proc", "sys", "etc", "root", "run", "tmp"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin/busybox")
    (tree / "sbin/init").symlink_to("../bin/busybox")
    for name in ("sh", "mount", "getty", "login", "hostname", "reboot", "poweroff", "cat"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc/passwd").write_text("root::0:0:root:/root:/bin/sh\n")
    (tree / "etc/hostname").write_text(f"{HOST_NAME}\n")
    (tree / "etc/issue").write_text("micro image on \\n\n")
    (tree / "etc/inittab").write_text(_INITTAB)
    (tree / "root/payload").write_bytes(random.Random(seed).randbytes(_PAYLOAD_BYTES))
    return tree
