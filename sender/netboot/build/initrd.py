"""The initrd: a first stage in a small cpio archive, and the root filesystem as a squashfs at its end.

The squashfs comes last, after its checksum: a boot loader or a memory that cuts the archive short cuts the squashfs,
which the first stage notices.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sender.netboot.build.root_filesystem import file_mode
from sender.netboot.cpio import CpioWriter
from sender.netboot.host_programs import run_host_program
from sender.netboot.medium import hash_file

ROOT_IMAGE: Final = "root.sqfs"
CHECKSUM: Final = "root.sha256"
_FOLDERS: Final = ("bin", "dev", "modules", "proc", "run", "sys")
_CONSOLE: Final = (5, 1)
"""Device number of /dev/console, the first stage's standard streams (Documentation/admin-guide/devices.txt)."""


def make_squashfs(root: Path, target: Path, time_s: int, *, quick: bool) -> None:
    """Write a root filesystem as a squashfs that belongs to root and has one time.

    Args:
        root: the root filesystem.
        target: the image.
        time_s: modification time of everything in it.
        quick: compress little.
    """
    target.unlink(missing_ok=True)
    level, block = ("1", "128K") if quick else ("15", "256K")
    argv: list[str | Path] = [
        "mksquashfs",
        root,
        target,
        "-comp",
        "zstd",
        "-Xcompression-level",
        level,
        "-b",
        block,
    ]
    argv += ["-all-root", "-noappend", "-no-progress", "-quiet", "-no-xattrs", "-no-exports"]
    argv += ["-mkfs-time", str(time_s), "-all-time", str(time_s)]
    # mksquashfs refuses its own time options beside the variable.
    run_host_program(argv, variables={"SOURCE_DATE_EPOCH": None})


def write_initrd(
    target: Path,
    first_stage: Mapping[str, bytes],
    busybox: Path,
    modules: Mapping[str, Path],
    image: Path,
    time_s: int,
) -> str:
    """Write the initrd, and return the SHA-256 of the squashfs.

    Args:
        target: the initrd.
        first_stage: scripts of the first stage, by path.
        busybox: a static busybox.
        modules: modules that the first stage inserts, by file name, in this order.
        image: the squashfs.
        time_s: modification time of all entries.
    """
    sha256 = hash_file(image)
    with target.open("wb") as file:
        archive = CpioWriter(file, time_s)
        for name in _FOLDERS:
            archive.add_directory(name)
        archive.add_character_device("dev/console", *_CONSOLE)
        archive.add_file("bin/busybox", busybox, 0o755)
        for name, content in sorted(first_stage.items()):
            archive.add_bytes(name, content, file_mode(content))
        for name, path in modules.items():
            archive.add_file(f"modules/{name}", path)
        archive.add_bytes("modules/order", "".join(f"{name}\n" for name in modules).encode())
        archive.add_bytes(CHECKSUM, f"{sha256}  {ROOT_IMAGE}\n".encode())
        archive.add_file(ROOT_IMAGE, image)
        archive.finish()
    return sha256
