"""The build of a boot medium, step by step."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from protocol.shared.units import format_bytes
from sender.netboot.build import kernel_modules, live_packages
from sender.netboot.build.apt_packages import DebianPackage, PackageSource
from sender.netboot.build.bill_of_materials import bill_of_materials
from sender.netboot.build.disk_loader import GRUB_MODULES, GRUB_PACKAGES, GRUB_PROGRAM, make_disk_loader
from sender.netboot.build.firmware import find_firmware, kernel_reads_xz, write_firmware
from sender.netboot.build.initrd import ROOT_IMAGE, make_squashfs, write_initrd
from sender.netboot.build.inside import InsideRunner, check_live_system
from sender.netboot.build.root_filesystem import (
    BakedIn,
    add_agent,
    add_kernel_modules,
    compile_python,
    configure,
    live_files,
    normalise_modes,
    part_sizes,
    python_of,
    remove_unneeded_libraries,
    tree_bytes,
)
from sender.netboot.build.unpack import prepare_root, unpack_packages
from sender.netboot.build.wheels import Wheel, WheelTarget, download_wheels, lock_text, locked_packages
from sender.netboot.host_programs import require_programs
from sender.netboot.medium import (
    BILL_OF_MATERIALS,
    FIRMWARE,
    INITRD,
    KERNEL,
    RECORD,
    BootMedium,
    Flavour,
    Loader,
    MediumRecord,
    record_files,
)

PROGRAMS: Final = (
    "apt-cache", "apt-get", "as", "depmod", "dpkg-deb", "ld", "mksquashfs", "readelf", "strip", "unshare",
)  # fmt: skip
MACHINES: Final = {"amd64": "x86_64"}
"""Architectures of Debian that boot media are built for, with their names in wheels."""

_KERNEL_DEPENDENCY: Final = re.compile(r"linux-image-\d\S*")
_GLIBC: Final = re.compile(r"2\.(\d+)")

_LOADER_FILES: Final[Mapping[Loader, str]] = {
    Loader.BIOS: "usr/lib/ipxe/undionly.kpxe",
    Loader.UEFI: "usr/lib/ipxe/snponly.efi",
    Loader.SHIM: "usr/lib/shim/shimx64.efi.signed",
    Loader.GRUB: "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
    Loader.GRUB_DISK: "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
}

_CHECKED_TOOLS: Final = (
    ("busybox", "true"), ("btrfs", "--version"), ("dumpe2fs", "-V"), ("e2fsck", "-V"),
    ("efibootmgr", "--version"), ("ethtool", "--version"), ("ip", "-V"), ("kmod", "--version"),
    ("lsblk", "--version"), ("mount", "--version"), ("ntfscat", "--version"), ("ntfsinfo", "--version"),
    ("ntfsresize", "--version"), ("partclone.exfat", "--version"), ("partclone.ntfs", "--version"),
    ("resize2fs", "-V"),
    ("sfdisk", "--version"), ("sgdisk", "--version"), ("smartctl", "--version"), ("udevadm", "--version"),
    ("/usr/lib/systemd/systemd-udevd", "--version"),
    ("unshare", "--version"), ("wipefs", "--version"), ("xfs_db", "-V"), ("xfs_growfs", "-V"),
    ("xfs_repair", "-V"),
)  # fmt: skip

Note = Callable[[str], None]
"""Receives one line about each finished step."""


@dataclasses.dataclass(frozen=True, slots=True)
class BuildPlan:
    """A build.

    Attributes:
        output: the medium's directory.
        suite: codename of the Debian release.
        mirrors: sources of packages; empty for this machine's own.
        flavour: the kernel.
        with_firmware: whether firmware is added.
        quick: compress little.
        baked_in: the operator's values in the live system.
        cache: directory of downloaded packages and wheels.
        time_s: modification time of all files; None for that of the newest package.
        architecture: Debian's name of it.
        firmware_optional: build without firmware if the sources have none, instead of failing.
    """

    output: Path
    suite: str
    mirrors: tuple[str, ...]
    flavour: Flavour
    with_firmware: bool
    quick: bool
    baked_in: BakedIn
    cache: Path
    time_s: int | None = None
    architecture: str = "amd64"
    firmware_optional: bool = False


def build_medium(plan: BuildPlan, note: Note) -> BootMedium:
    """Build a boot medium, and return it; a failed build leaves none.

    Raises:
        MissingDependencyError: a program is missing here.
        ConfigurationError: a step failed.
    """
    require_programs(PROGRAMS, "building a boot medium")
    plan.output.mkdir(parents=True, exist_ok=True)
    others = [path.name for path in plan.output.iterdir()]
    if others and RECORD not in others:
        raise ConfigurationError(f"{plan.output} isn't empty and has no {RECORD}: choose another directory")
    plan.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=plan.output.parent) as work:
        build = _Build(plan, Path(work), note)
        build.run()
        # The record goes first and comes last: an interruption leaves no medium that looks whole.
        (plan.output / RECORD).unlink(missing_ok=True)
        for path in plan.output.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in sorted(build.result.iterdir(), key=lambda path: path.name == RECORD):
            path.rename(plan.output / path.name)
    return BootMedium.open(plan.output)


class _Build:
    """One build in a temporary directory."""

    def __init__(self, plan: BuildPlan, work: Path, note: Note) -> None:
        self._plan = plan
        self._note = note
        self._work = work
        self.result = self._make("result")
        self._root = self._make("root")
        self._kernel = self._make("kernel")
        self._source = PackageSource(
            self._make("apt"), plan.cache, plan.suite, plan.architecture, plan.mirrors
        )
        self._inside = InsideRunner(self._root)
        self._with_firmware = plan.with_firmware

    def run(self) -> None:
        plan = self._plan
        live, extra = self._get_packages()
        newest_s = self._unpack(live, extra)
        time_s = plan.time_s if plan.time_s is not None else newest_s
        site_wheels = self._add_agent(live)
        release = self._add_kernel()
        configure(self._root, plan.baked_in)
        remove_unneeded_libraries(self._root, self._note)
        compile_python(self._root, self._inside.run)
        self._note(f"Python modules compiled, root filesystem of {format_bytes(tree_bytes(self._root))}")
        self._check()
        if self._with_firmware:
            self._add_firmware(release, time_s)
        root_sha256 = self._write_initrd(release, time_s)
        self._copy_loaders()
        version = importlib.metadata.version("diskcast")
        bill = bill_of_materials(version, plan.suite, [*live, *extra], site_wheels)
        (self.result / BILL_OF_MATERIALS).write_text(bill)
        self._write_record(version, release, root_sha256)

    def _make(self, name: str) -> Path:
        path = self._work / name
        path.mkdir()
        return path

    def _get_packages(self) -> tuple[list[DebianPackage], list[DebianPackage]]:
        """Download the packages of the root filesystem, and those of kernel, loaders and firmware."""
        source, plan = self._source, self._plan
        source.update()
        wanted = source.resolve(live_packages.PACKAGES)
        kernel = source.newest(_KERNEL_DEPENDENCY, live_packages.KERNEL_PACKAGES[plan.flavour])
        names = [kernel, *live_packages.LOADER_PACKAGES, *GRUB_PACKAGES]
        if plan.with_firmware:
            names += self._firmware_packages()
        packages = source.show([*wanted, *names])
        live = [package for package in packages if package.name not in names]
        extra = [package for package in packages if package.name in names]
        fetched_bytes = source.download([*live, *extra])
        total_bytes = sum(package.size_bytes for package in (*live, *extra))
        self._note(
            f"{len(live) + len(extra)} packages of Debian {plan.suite}, {format_bytes(total_bytes)}, "
            f"{format_bytes(fetched_bytes)} of them downloaded"
        )
        return live, extra

    def _firmware_packages(self) -> list[str]:
        firmware = self._source.available(live_packages.FIRMWARE_PACKAGES)
        if "firmware-misc-nonfree" in firmware:
            return firmware
        if not self._plan.firmware_optional:
            raise ConfigurationError(
                "the apt sources have no firmware: add their component non-free-firmware, or give --no-firmware"
            )
        self._with_firmware = False
        self._note(
            "no firmware, which some network cards need: apt's sources have none; add their component "
            "non-free-firmware, run apt-get update, and build again with `diskcast netboot build`"
        )
        return []

    def _unpack(self, live: Sequence[DebianPackage], extra: Sequence[DebianPackage]) -> int:
        prepare_root(self._root)
        prepare_root(self._kernel)
        newest_s = unpack_packages(map(self._source.path, live), self._root, live_packages.is_wanted)
        newest_s = max(
            newest_s, unpack_packages(map(self._source.path, extra), self._kernel, _is_wanted_extra)
        )
        self._note(f"packages unpacked, {format_bytes(tree_bytes(self._root))} of them wanted")
        return newest_s

    def _add_agent(self, live: Sequence[DebianPackage]) -> list[Wheel]:
        [libc] = [package for package in live if package.name == "libc6"]
        glibc = _GLIBC.search(libc.version)
        assert glibc is not None
        target = WheelTarget(python_of(self._root), int(glibc[1]), MACHINES[self._plan.architecture])
        found = download_wheels(locked_packages(target.python), target, self._plan.cache)
        add_agent(self._root, found, self._work, strip=True)
        self._note(f"agent and {len(found)} wheels for Python {target.python[0]}.{target.python[1]}")
        return found

    def _add_kernel(self) -> str:
        [image] = (self._kernel / "boot").glob("vmlinuz-*")
        release = image.name.removeprefix("vmlinuz-")
        shutil.copyfile(image, self.result / KERNEL)
        kernel_modules.index_modules(self._kernel, release)
        folder = self._kernel / "usr/lib/modules" / release
        self._needs = kernel_modules.parse_modules_dep((folder / "modules.dep").read_text())
        chosen = sorted(kernel_modules.choose_modules(self._needs))
        add_kernel_modules(self._root, self._kernel, release, chosen)
        self._note(f"kernel {release}, {len(chosen)} of {len(self._needs)} modules")
        return release

    def _check(self) -> None:
        check_live_system(self._inside, _CHECKED_TOOLS)
        self._note("every module, command and tool of the agent runs in the result")

    def _add_firmware(self, release: str, time_s: int) -> None:
        modules = self._root / "usr/lib/modules" / release
        names = kernel_modules.firmware_names(
            (path.read_bytes() for path in modules.rglob("*.ko")),
            (modules / "modules.builtin.modinfo").read_bytes(),
        )
        folder = self._kernel / "usr/lib/firmware"
        firmware = find_firmware(folder, names)
        configuration = (self._kernel / "boot" / f"config-{release}").read_text()
        target = self.result / FIRMWARE
        write_firmware(folder, firmware.found, target, time_s, compress=kernel_reads_xz(configuration))
        self._note(
            f"{len(firmware.found)} firmware files, {format_bytes(target.stat().st_size)}; no package has "
            f"{len(firmware.missing)} others that drivers name"
        )

    def _write_initrd(self, release: str, time_s: int) -> str:
        image = self._work / ROOT_IMAGE
        normalise_modes(self._root)
        make_squashfs(self._root, image, time_s, quick=self._plan.quick)
        folder = self._root / "usr/lib/modules" / release
        paths = map(kernel_modules.unpacked_name, kernel_modules.first_stage_modules(self._needs))
        modules = {Path(path).name: folder / path for path in paths}
        target = self.result / INITRD
        sha256 = write_initrd(
            target, live_files("initrd"), self._root / "usr/bin/busybox", modules, image, time_s
        )
        self._note(f"initrd of {format_bytes(target.stat().st_size)}")
        return sha256

    def _copy_loaders(self) -> None:
        for loader, path in _LOADER_FILES.items():
            target = self.result / loader
            target.parent.mkdir(parents=True, exist_ok=True)
            source = self._kernel / path
            if not source.exists():
                raise ConfigurationError(f"no package has {path}: use another --suite or --mirror")
            shutil.copyfile(source, target)
        make_disk_loader(self._kernel, self.result / Loader.DISK)

    def _write_record(self, version: str, release: str, root_sha256: str) -> None:
        plan = self._plan
        record = MediumRecord(
            diskcast_version=version,
            architecture=plan.architecture,
            flavour=plan.flavour,
            suite=plan.suite,
            kernel_release=release,
            root_sha256=root_sha256,
            lock_sha256=hashlib.sha256(lock_text().encode()).hexdigest(),
            servers=plan.baked_in.servers,
            pins=plan.baked_in.pins,
            trusted_keys=tuple(key.key.id_text for key in plan.baked_in.keys),
            files=record_files(self.result),
            parts_bytes=part_sizes(self._root),
        )
        (self.result / RECORD).write_text(record.to_json())


def _is_wanted_extra(path: str) -> bool:
    grub = (GRUB_PROGRAM, GRUB_MODULES)
    return path.startswith(("boot/", "usr/lib/modules/", "usr/lib/firmware/", *grub, *_LOADER_FILES.values()))
