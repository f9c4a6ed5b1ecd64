"""Raw disk images that boot Linux on BIOS and UEFI, made without root, loop devices or mounts.

A GPT with two partitions: FAT32 with kernel, initrd and loaders (syslinux for BIOS; systemd-boot, or Debian's signed
shim and GRUB, for UEFI), and ext4 with the system.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from protocol.constants import MIB
from tests.support.network.lab import run
from tests.support.programs.processes import require_program

_FAT_START_BYTES: Final = MIB
_SECTOR_BYTES: Final = 512
_ESP: Final = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_LINUX: Final = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
_GPT_BOOT_CODE: Final = Path("/usr/lib/syslinux/mbr/gptmbr.bin")
_BOOT_CODE_BYTES: Final = 440


UefiLoaders = Mapping[str, Path]
"""Boot loaders by their paths in the FAT filesystem."""

SYSTEMD_BOOT: Final[UefiLoaders] = {
    "EFI/BOOT/BOOTX64.EFI": Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi"),
}


def signed_loaders(medium: Path) -> UefiLoaders:
    """Return the loaders of a boot medium that Secure Boot accepts: Debian's signed shim and GRUB."""
    return {
        "EFI/BOOT/BOOTX64.EFI": medium / "loaders/shimx64.efi",
        "EFI/BOOT/grubx64.efi": medium / "loaders/disk/grubx64.efi",
    }


def make_fat(
    work: Path,
    kernel: Path,
    initrd: Path,
    command_line: str,
    *,
    size_bytes: int,
    uefi_loaders: UefiLoaders = SYSTEMD_BOOT,
) -> Path:
    """Create the FAT32 filesystem in the folder ``work``, with loaders for both kinds of firmware.

    Args:
        work: folder for the result and its parts.
        kernel: kernel that the loaders start.
        initrd: initial RAM disk.
        command_line: kernel command line.
        size_bytes: size of the filesystem.
        uefi_loaders: loaders for UEFI.
    """
    fat = work / "fat"
    sparse_file(fat, size_bytes)
    run(require_program("mkfs.vfat"), "-F", "32", "-n", "DCBOOT", fat)
    texts = {
        "syslinux.cfg": "SERIAL 0 115200\nDEFAULT linux\nPROMPT 0\nTIMEOUT 1\nLABEL linux\n"
        f" LINUX /vmlinuz\n INITRD /initrd\n APPEND {command_line}\n",
        "loader/loader.conf": "timeout 0\ndefault linux.conf\n",
        "loader/entries/linux.conf": f"title linux\nlinux /vmlinuz\ninitrd /initrd\noptions {command_line}\n",
        "EFI/debian/grub.cfg": "search --no-floppy --set=root --file /vmlinuz\n"
        f"linux /vmlinuz {command_line}\ninitrd /initrd\nboot\n",
    }
    files = {"vmlinuz": kernel, "initrd": initrd, **uefi_loaders}
    for number, (name, text) in enumerate(texts.items()):
        files[name] = work / f"text-{number}"
        files[name].write_text(text)
    run(
        require_program("mmd"),
        "-i",
        fat,
        "::EFI",
        "::EFI/BOOT",
        "::EFI/debian",
        "::loader",
        "::loader/entries",
    )
    for name, source in files.items():
        run("mcopy", "-i", fat, source, f"::{name}")
    run(require_program("syslinux"), "--install", fat)
    return fat


def make_ext4(work: Path, tree: Path, *, label: str, size_bytes: int) -> Path:
    """Create an ext4 filesystem with the files of ``tree`` in the folder ``work``."""
    ext4 = work / "ext4"
    sparse_file(ext4, size_bytes)
    run(require_program("mkfs.ext4"), "-q", "-L", label, "-d", tree, ext4)
    return ext4


def assemble_image(path: Path, fat: Path, ext4: Path) -> None:
    """Create the raw image ``path`` from its two filesystems."""
    parts = (
        (fat, _ESP, ', attrs="LegacyBIOSBootable"'),
        (ext4, _LINUX, ""),
    )  # gptmbr.bin starts the marked one
    start_bytes = _FAT_START_BYTES
    lines, starts_bytes = ["label: gpt"], []
    for part, kind, flag in parts:
        size_bytes = part.stat().st_size
        lines.append(
            f"start={start_bytes // _SECTOR_BYTES}, size={size_bytes // _SECTOR_BYTES}, type={kind}{flag}"
        )
        starts_bytes.append(start_bytes)
        start_bytes += size_bytes
    sparse_file(path, start_bytes + MIB)  # the backup of the table
    run(require_program("sfdisk"), "-q", path, text="\n".join(lines) + "\n")
    with path.open("r+b") as image:
        image.write(_GPT_BOOT_CODE.read_bytes()[:_BOOT_CODE_BYTES])
    for (part, _, _), start in zip(parts, starts_bytes, strict=True):
        run(
            "dd",
            f"if={part}",
            f"of={path}",
            "bs=1M",
            f"seek={start // MIB}",
            "conv=notrunc,sparse",
            "status=none",
        )


def sparse_file(path: Path, size_bytes: int) -> None:
    """Create a file that is one hole."""
    with path.open("xb") as file:
        file.truncate(size_bytes)
