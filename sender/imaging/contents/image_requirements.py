"""Requirements of an image that its filesystems show: architecture, signed boot loader, drivers.

The bytes are untrusted, and reading them is bounded. The architecture is that of ``/bin/sh``, or else of the boot
loader's name. The drivers are those of the newest kernel in ``/lib/modules``: its modules and its built-in drivers, for
network cards and disk controllers only.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator
from typing import Final

from protocol.constants import MIB
from protocol.disk.disk_reads import Read
from protocol.disk.fat import FatError, has_fat_file_untrusted
from sender.imaging.contents.ext_files import ExtFiles

DRIVER_ALIASES_MAX: Final = 16_384
"""Patterns of one image: Debian's kernel has 5,000 for network cards and disk controllers. Those of a larger list are
left out altogether, since a cut list would warn about devices that have a driver."""

_ALIASES_BYTES_MAX: Final = 4 * MIB
"""``modules.alias`` of a distribution has 1.5 MB, ``modules.dep`` 0.7 MB, ``modules.builtin.modinfo`` 0.2 MB."""
_PATTERN_CHARACTERS_MAX: Final = 200
_KERNELS_MAX: Final = 64

_ARCHITECTURES: Final = {
    (1, 3): "i686",
    (2, 62): "x86_64",
    (2, 183): "aarch64",
    (1, 40): "armv7l",
    (2, 243): "riscv64",
    (2, 21): "ppc64le",
    (2, 22): "s390x",
}
"""The kernel's names, by class and machine of an ELF file (System V ABI, 4)."""
_LOADERS: Final = {
    "x86_64": "BOOTX64.EFI",
    "aarch64": "BOOTAA64.EFI",
    "i686": "BOOTIA32.EFI",
    "riscv64": "BOOTRISCV64.EFI",
}
"""Loaders of the removable path (UEFI specification 2.10, 3.5.1.1)."""
_SIGNED: Final = (
    *(rf"\EFI\{vendor}\shim{bits}.efi" for bits in ("x64", "aa64") for vendor in (
        "debian", "ubuntu", "fedora", "redhat", "centos", "rocky", "almalinux", "opensuse", "sles", "arch",
    )),
    r"\EFI\BOOT\mmx64.efi", r"\EFI\BOOT\mmaa64.efi", r"\EFI\BOOT\fbx64.efi", r"\EFI\BOOT\fbaa64.efi",
    r"\EFI\Microsoft\Boot\bootmgfw.efi",
)  # fmt: skip
"""Shims of distributions, the programs beside a shim on the removable path, and Windows' loader."""

_MODULE_PATH: Final = re.compile(
    r"(?:kernel/)?drivers/(?:net/(?!wireless)|ata/|scsi/|nvme/|block/|mmc/|message/|virtio/|usb/storage/|hv/|xen/)"
)
_BUSES: Final = ("pci:", "usb:", "virtio:", "vmbus:", "xen:", "platform:", "of:")


@dataclasses.dataclass(frozen=True, slots=True)
class FoundRequirements:
    """Requirements that one filesystem shows.

    Attributes:
        architecture: empty if it shows none.
        signed_loader: None if it isn't an EFI partition.
        aliases: devices with a driver, as in ``modules.alias``; None if it has no kernel modules.
    """

    architecture: str = ""
    signed_loader: bool | None = None
    aliases: tuple[str, ...] | None = None


def read_requirements_untrusted(filesystem: str, read: Read) -> FoundRequirements:
    """Return the requirements that a filesystem shows.

    Raises:
        ExtError: it is damaged, or has unsupported features.
    """
    if filesystem == "vfat":
        return _read_loader(read)
    if filesystem != "ext4":
        return FoundRequirements()
    files = ExtFiles.open_untrusted(read)
    return FoundRequirements(_read_architecture(files), None, _read_aliases(files))


def _read_loader(read: Read) -> FoundRequirements:
    try:
        loaders = [
            name for name, file in _LOADERS.items() if has_fat_file_untrusted(read, rf"\EFI\BOOT\{file}")
        ]
        signed = any(has_fat_file_untrusted(read, path) for path in _SIGNED)
    except (FatError, struct.error):
        return FoundRequirements()
    if not loaders and not signed:
        return FoundRequirements()
    # A disk with the loaders of several architectures starts on each of them.
    return FoundRequirements(loaders[0] if len(loaders) == 1 else "", signed)


def _read_architecture(files: ExtFiles) -> str:
    start = files.read_file_untrusted("/bin/sh", 64) or b""
    if len(start) < 20 or start[:4] != b"\x7fELF":
        return ""
    (machine,) = struct.unpack_from("<H" if start[5] == 1 else ">H", start, 18)
    return _ARCHITECTURES.get((start[4], machine), "")


def _read_aliases(files: ExtFiles) -> tuple[str, ...] | None:
    for folder in ("/lib/modules", "/usr/lib/modules"):
        kernels = sorted(files.folder_names_untrusted(folder, _KERNELS_MAX), key=_version, reverse=True)
        for kernel in kernels:
            place = f"{folder}/{kernel}"
            alias = files.read_file_untrusted(f"{place}/modules.alias", _ALIASES_BYTES_MAX)
            if not alias:
                continue
            dependencies = files.read_file_untrusted(f"{place}/modules.dep", _ALIASES_BYTES_MAX) or b""
            builtin = files.read_file_untrusted(f"{place}/modules.builtin.modinfo", _ALIASES_BYTES_MAX) or b""
            return driver_aliases_untrusted(alias, dependencies, builtin)
    return None


def driver_aliases_untrusted(alias: bytes, dependencies: bytes, builtin: bytes) -> tuple[str, ...] | None:
    """Return the patterns of the network cards and disk controllers for which a kernel has drivers.

    Args:
        alias: ``modules.alias``.
        dependencies: ``modules.dep``, which has the places of the modules.
        builtin: ``modules.builtin.modinfo``.

    Returns:
        The patterns; None if there are none, or too many.
    """
    modules = {
        path.rpartition("/")[2].partition(".")[0].replace("-", "_")
        for line in dependencies.decode("utf-8", "replace").splitlines()
        if _MODULE_PATH.match(path := line.partition(":")[0])
    }
    found: dict[str, None] = {}
    for line in alias.decode("utf-8", "replace").splitlines():
        words = line.split(" ")
        if len(words) == 3 and words[0] == "alias" and words[2].replace("-", "_") in modules:
            found[words[1]] = None
    found |= dict.fromkeys(_builtin_aliases(builtin))
    patterns = tuple(
        pattern
        for pattern in found
        if pattern.startswith(_BUSES) and len(pattern) <= _PATTERN_CHARACTERS_MAX and pattern.isprintable()
    )
    return patterns if 0 < len(patterns) <= DRIVER_ALIASES_MAX else None


def _builtin_aliases(modinfo: bytes) -> Iterator[str]:
    """Yield the aliases of built-in drivers: entries ``MODULE.alias=…`` and ``MODULE.file=PATH``, separated by NUL."""
    entries = [entry.partition("=") for entry in modinfo.decode("utf-8", "replace").split("\0")]
    wanted = {
        name.removesuffix(".file")
        for name, _, value in entries
        if name.endswith(".file") and _MODULE_PATH.match(value)
    }
    for name, _, value in entries:
        module, dot, field = name.rpartition(".")
        if dot and field == "alias" and module in wanted:
            yield value


def _version(name: str) -> tuple[tuple[int, int | str], ...]:
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name)[:32])
