"""The loader that starts the machine's own disk: an image of GRUB with its script inside."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from sender.netboot.disk_boot import grub_disk_commands

GRUB_PACKAGES: Final = ("grub-common", "grub-efi-amd64-bin")
GRUB_PROGRAM: Final = "usr/bin/grub-mkimage"
GRUB_MODULES: Final = "usr/lib/grub/x86_64-efi/"

_MODULES: Final = (
    "memdisk", "tar", "part_gpt", "part_msdos", "fat", "regexp", "chain", "normal", "test",
    "echo", "minicmd", "boot",
)  # fmt: skip
_SCRIPT: Final = "boot/grub/grub.cfg"
_TIMEOUT_S: Final = 60.0


def make_disk_loader(packages: Path, target: Path) -> None:
    """Write the loader; equal packages give equal bytes.

    The script is in a memory disk, not in the image's early configuration, which has no ``if``. The program of a newer
    release than this machine's doesn't run here; this machine's own one then links the modules of the packages.

    Args:
        packages: directory with the unpacked :data:`GRUB_PACKAGES`.
        target: file to write.

    Raises:
        ConfigurationError: neither the program of the packages nor one of this machine runs here.
    """
    with tempfile.NamedTemporaryFile(suffix=".tar") as memory_disk:
        memory_disk.write(_memory_disk())
        memory_disk.flush()
        options: list[str | Path] = [
            "--format=x86_64-efi", f"--directory={packages / GRUB_MODULES}", f"--memdisk={memory_disk.name}",
            "--prefix=(memdisk)/boot/grub", f"--output={target}", *_MODULES,
        ]  # fmt: skip
        complaint = ""
        for program in (packages / GRUB_PROGRAM, Path("/", GRUB_PROGRAM)):
            try:
                done = subprocess.run(
                    [program, *options], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
                )
            except OSError as error:
                complaint = complaint or str(error)
                continue
            if done.returncode == 0:
                return
            complaint = complaint or done.stderr.strip()
    raise ConfigurationError(f"can't make the disk's loader: {complaint}; {_FIX}")


_FIX: Final = "install Debian's grub-common, which brings the libraries that it needs"


def _memory_disk() -> bytes:
    content = ("\n".join(grub_disk_commands("nothing to do")) + "\n").encode()
    disk = io.BytesIO()
    with tarfile.open(fileobj=disk, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo(_SCRIPT)  # with the time 0
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return disk.getvalue()
