"""Writing a boot medium as the image of a USB stick or an optical disc, for BIOS, UEFI and Secure Boot.

Debian's shim and GRUB start it by UEFI, with their signatures; a GRUB made here starts it by BIOS. Nothing is mounted,
and no root rights are needed: mtools and xorriso write the filesystems.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from protocol.constants import BOOT_STICK_LABEL, MIB
from protocol.control.boot_parameters import LiveMode
from protocol.errors import ConfigurationError, MissingDependencyError
from sender.netboot.cpio import CpioWriter
from sender.netboot.host_programs import require_programs, run_host_program
from sender.netboot.medium import KERNEL, RECORD, BootMedium, Loader
from sender.netboot.usb.grub_text import BIOS_MODULES, EMBEDDED, MARKER, OPTICAL, StickMenu

STICK_PROGRAMS: Final = ("grub-mkimage", "mcopy", "mkfs.vfat", "mmd")
DISC_PROGRAMS: Final = (*STICK_PROGRAMS, "xorriso")
DISC_SUFFIX: Final = ".iso"
SETTINGS: Final = "settings"
"""An initrd with the settings of this stick only."""
_GRUB: Final = Path("/usr/lib/grub/i386-pc")
_SECTOR_BYTES: Final = 512
_PARTITION_START_BYTES: Final = MIB
"""Room for GRUB's image between the partition table and the first partition, as every partitioning tool leaves it."""
_FAT_SPARE_BYTES: Final = 16 * MIB
"""For FAT's own tables, and for a technician's own files."""
_FAT32_BYTES_MIN: Final = 40 * MIB
"""Fewer clusters would be FAT16, which firmware may not read from a stick."""
_BOOT_CODE_BYTES: Final = 440
_ACTIVE: Final = 0x80
_EFI_SYSTEM: Final = 0xEF
"""Partition type of the EFI system partition in an MBR (UEFI specification, 5.2.2)."""
_CHS_UNUSED: Final = b"\xfe\xff\xff"
_EFI_IMAGE: Final = "efi.img"
_EFI_IMAGE_BYTES: Final = 8 * MIB


@dataclasses.dataclass(frozen=True, slots=True)
class StickFiles:
    """The files of a stick: paths on it, and where their content is."""

    files: Mapping[str, Path]

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in self.files.values())


def master_boot_record(boot_code: bytes, first_sector: int, sector_count: int, disk_id: int) -> bytes:
    """Return a partition table with one active EFI system partition, behind boot code.

    BIOS starts the boot code, and some refuse a stick without an active partition; UEFI looks for the type.
    """
    entry = bytes([_ACTIVE]) + _CHS_UNUSED + bytes([_EFI_SYSTEM]) + _CHS_UNUSED
    entry += first_sector.to_bytes(4, "little") + sector_count.to_bytes(4, "little")
    head = boot_code[:_BOOT_CODE_BYTES].ljust(_BOOT_CODE_BYTES, b"\0")
    return head + disk_id.to_bytes(4, "little") + b"\0\0" + entry + bytes(48) + b"\x55\xaa"


@dataclasses.dataclass(frozen=True, slots=True)
class StickPlan:
    """A stick or a disc to write.

    Attributes:
        medium: the boot medium.
        target: the image; its suffix decides between the two.
        mode: mode of the live system without a key press.
        servers: URLs of daemons, besides those of the medium.
        token: enrolment token for the agent; empty for none.
    """

    medium: BootMedium
    target: Path
    mode: LiveMode
    servers: tuple[str, ...] = ()
    token: str = dataclasses.field(default="", repr=False)


def write_stick(plan: StickPlan) -> None:
    """Write the image of a USB stick, or of an optical disc, which starts from a stick, too.

    Raises:
        MissingDependencyError: a program is missing here.
        ConfigurationError: a step failed.
    """
    is_disc = plan.target.suffix == DISC_SUFFIX
    require_programs(DISC_PROGRAMS if is_disc else STICK_PROGRAMS, "making a boot stick")
    if not (_GRUB / "boot.img").exists():
        raise MissingDependencyError("making a boot stick needs GRUB for BIOS: apt install grub-pc-bin")
    medium = plan.medium
    medium.verify()
    with tempfile.TemporaryDirectory(prefix=".usb-", dir=plan.target.parent) as folder:
        work = Path(folder)
        initrds = {name: medium.path(name) for name in medium.initrds}
        if plan.token:
            initrds[SETTINGS] = work / SETTINGS
            _write_settings(work / SETTINGS, plan.token)
        menu = StickMenu(plan.mode, tuple(initrds), medium.record.root_sha256, plan.servers)
        configuration = work / "grub.cfg"
        configuration.write_text(menu.configuration())
        files = {f"diskcast/{name}": path for name, path in {KERNEL: medium.path(KERNEL), **initrds}.items()}
        files |= {
            MARKER.removeprefix("/"): medium.directory / RECORD,
            "EFI/BOOT/BOOTX64.EFI": medium.path(Loader.SHIM),
            "EFI/BOOT/grubx64.efi": medium.path(Loader.GRUB_DISK),
            "EFI/debian/grub.cfg": configuration,
        }
        image = work / "image"
        assemble = _assemble_disc if is_disc else _assemble_stick
        assemble(StickFiles(files), image, work, int(medium.record.root_sha256[:8], 16))
        if plan.token:
            image.chmod(0o600)
        image.replace(plan.target)


def _write_settings(path: Path, token: str) -> None:
    """Write an initrd whose files the first stage copies into the live system."""
    with path.open("wb") as file:
        archive = CpioWriter(file, 0)
        archive.add_directory("etc")
        archive.add_directory("etc/diskcast")
        archive.add_bytes("etc/diskcast/token", f"{token}\n".encode(), 0o600)
        archive.finish()


def _assemble_stick(stick: StickFiles, image: Path, work: Path, disk_id: int) -> None:
    core = _make_bios_grub(work, "i386-pc")
    if core.stat().st_size > _PARTITION_START_BYTES - _SECTOR_BYTES:
        raise ConfigurationError("GRUB's image is larger than the gap before the first partition")
    fat_bytes = max(_FAT32_BYTES_MIN, stick.size_bytes + _FAT_SPARE_BYTES)
    fat_bytes += -fat_bytes % MIB
    with image.open("wb") as file:
        file.write(
            master_boot_record(
                (_GRUB / "boot.img").read_bytes(),
                _PARTITION_START_BYTES // _SECTOR_BYTES,
                fat_bytes // _SECTOR_BYTES,
                disk_id,
            )
        )
        file.write(core.read_bytes())
        file.truncate(_PARTITION_START_BYTES + fat_bytes)
    _make_fat(image, _PARTITION_START_BYTES, fat_bytes, disk_id)
    _copy_into_fat(f"{image}@@{_PARTITION_START_BYTES}", stick.files)


def _assemble_disc(stick: StickFiles, image: Path, work: Path, disk_id: int) -> None:
    core = _make_bios_grub(work, "i386-pc-eltorito")
    efi = work / _EFI_IMAGE
    with efi.open("wb") as file:
        file.truncate(_EFI_IMAGE_BYTES)
    _make_fat(efi, 0, _EFI_IMAGE_BYTES, disk_id)
    redirect = work / "redirect.cfg"
    redirect.write_text(OPTICAL)
    loaders = {name: path for name, path in stick.files.items() if name.startswith("EFI/BOOT/")}
    _copy_into_fat(str(efi), loaders | {"EFI/debian/grub.cfg": redirect})
    grafts = [f"{name}={path}" for name, path in {**stick.files, "boot/bios.img": core}.items()]
    run_host_program(
        [
            "xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-V", BOOT_STICK_LABEL, "-o", image,
            "--grub2-mbr", _GRUB / "boot_hybrid.img",
            "-b", "boot/bios.img", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "--grub2-boot-info",
            "-append_partition", "2", "0xef", efi,
            "-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot",
            "-graft-points", *grafts,
        ]
    )  # fmt: skip


def _make_bios_grub(work: Path, platform: str) -> Path:
    configuration, core = work / "embedded.cfg", work / "core.img"
    configuration.write_text(EMBEDDED)
    argv: list[str | Path] = ["grub-mkimage", "--format", platform, "--directory", _GRUB, "--output", core]
    argv += ["--config", configuration, "--prefix", "/EFI/debian", *BIOS_MODULES]
    run_host_program(argv)
    return core


def _make_fat(image: Path, offset_bytes: int, size_bytes: int, volume_id: int) -> None:
    argv: list[str | Path] = ["mkfs.vfat", "--invariant", "-n", BOOT_STICK_LABEL]
    argv += ["-F", "32"] if size_bytes >= _FAT32_BYTES_MIN else []
    argv += ["-i", f"{volume_id:08x}", "--offset", str(offset_bytes // _SECTOR_BYTES)]
    run_host_program([*argv, image, str(size_bytes // 1024)])


def _copy_into_fat(image: str, files: Mapping[str, Path]) -> None:
    """Copy files into a FAT filesystem, in the order of their paths."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents if str(parent) != "."})
    run_host_program(["mmd", "-i", image, *(f"::{folder}" for folder in folders)], variables=_MTOOLS)
    for name, path in sorted(files.items()):
        run_host_program(["mcopy", "-i", image, path, f"::{name}"], variables=_MTOOLS)


_MTOOLS: Final = {"MTOOLS_SKIP_CHECK": "1", "SOURCE_DATE_EPOCH": "0"}
"""A partition within an image has no geometry that mtools knows; files get a constant time."""
