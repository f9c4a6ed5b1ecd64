"""Firmware that the included drivers load, as an initrd of its own."""

from __future__ import annotations

import dataclasses
import lzma
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Final

from sender.netboot.cpio import CpioWriter

FOLDER: Final = "lib/firmware"
_SUFFIXES: Final = ("", ".xz", ".zst")
"""Debian's packages have plain files; later releases may compress them, and the kernel reads these forms."""
_COMPRESSED_FROM_BYTES: Final = 16 * 1024
"""A smaller file takes whole pages of memory anyway."""


@dataclasses.dataclass(frozen=True, slots=True)
class FirmwareFiles:
    """Firmware for a set of drivers.

    Attributes:
        found: names of files, relative to the folder of all firmware, with the suffix of their compression.
        missing: names that no package has.
    """

    found: tuple[str, ...]
    missing: tuple[str, ...]


def find_firmware(folder: Path, names: Collection[str]) -> FirmwareFiles:
    """Find firmware by the names, or patterns of names, with which drivers load it.

    Args:
        folder: the unpacked firmware of all packages.
        names: as modules have them.
    """
    found, missing = set(), []
    for name in sorted(names):
        safe = not name.startswith("/") and ".." not in PurePosixPath(name).parts
        matches = [
            path for suffix in _SUFFIXES if safe for path in folder.glob(f"{name}{suffix}") if path.is_file()
        ]
        found |= {str(path.relative_to(folder)) for path in matches}
        if not matches:
            missing.append(name)
    return FirmwareFiles(tuple(sorted(found)), tuple(missing))


def write_firmware(
    folder: Path, names: Collection[str], target: Path, time_s: int, *, compress: bool
) -> None:
    """Write the initrd of firmware files; links become the files that they lead to.

    Args:
        folder: the unpacked firmware.
        names: files in it.
        target: the initrd.
        time_s: modification time of all entries.
        compress: whether the kernel reads files that end in ``.xz``: they stay compressed in memory.
    """
    with target.open("wb") as file:
        archive = CpioWriter(file, time_s)
        parents = {
            str(parent)
            for name in names
            for parent in PurePosixPath(FOLDER, name).parents
            if str(parent) != "."
        }
        for parent in sorted(parents):
            archive.add_directory(parent)
        for name in sorted(names):
            content = (folder / name).read_bytes()
            if compress and len(content) >= _COMPRESSED_FROM_BYTES and not name.endswith(_SUFFIXES[1:]):
                # The kernel's decompressor knows no other check than CRC32.
                packed = lzma.compress(content, check=lzma.CHECK_CRC32, preset=lzma.PRESET_DEFAULT)
                archive.add_bytes(f"{FOLDER}/{name}.xz", packed)
            else:
                archive.add_bytes(f"{FOLDER}/{name}", content)
        archive.finish()


def kernel_reads_xz(configuration: str) -> bool:
    """Return whether a kernel with this configuration loads firmware compressed by xz."""
    return "CONFIG_FW_LOADER_COMPRESS_XZ=y" in configuration.splitlines()
