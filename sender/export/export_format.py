"""Formats of exports, with their file name endings and their names in QEMU."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from protocol.constants import GIB, TIB
from protocol.errors import ConfigurationError
from protocol.shared.units import format_bytes


class ExportFormat(enum.StrEnum):
    """A format that an image can be exported to; the value is the usual ending of file names."""

    RAW = "raw"
    RAW_ZST = "raw.zst"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHDX = "vhdx"
    VDI = "vdi"
    VHD = "vhd"
    CLONEZILLA = "clonezilla"
    """A directory."""


@dataclasses.dataclass(frozen=True, slots=True)
class QemuFormat:
    """The way in which qemu-img writes a format."""

    name: str
    options: str = ""
    disk_bytes_max: int | None = None
    """Largest disk that the format can hold."""


QEMU_FORMATS: Final[Mapping[ExportFormat, QemuFormat]] = MappingProxyType(
    {
        ExportFormat.QCOW2: QemuFormat("qcow2", "compat=1.1,lazy_refcounts=off"),
        ExportFormat.VMDK: QemuFormat("vmdk", "subformat=monolithicSparse", 2 * TIB),
        ExportFormat.VHDX: QemuFormat("vhdx", "subformat=dynamic", 64 * TIB),
        ExportFormat.VDI: QemuFormat("vdi"),
        # Without force_size QEMU rounds the size to cylinders, and the disk would end after its backup GPT.
        ExportFormat.VHD: QemuFormat("vpc", "subformat=dynamic,force_size=on", 2040 * GIB),
    }
)
"""Formats that qemu-img writes; diskcast writes the others itself."""

_SUFFIXES: Final[Mapping[str, ExportFormat]] = MappingProxyType(
    {f".{kind}": kind for kind in ExportFormat} | {".img": ExportFormat.RAW, ".vpc": ExportFormat.VHD}
)


def export_format(output: Path, name: str | None) -> ExportFormat:
    """Return the format called ``name``, by default that of the output's ending.

    Raises:
        ConfigurationError: the ending belongs to no format.
    """
    if name is not None:
        return ExportFormat(name)
    # The longest ending first: ".raw.zst" before ".zst".
    for count in (2, 1):
        found = _SUFFIXES.get("".join(output.suffixes[-count:]).lower())
        if found is not None:
            return found
    raise ConfigurationError(
        f"{output}: the ending doesn't name a format; choose one with --format: {', '.join(ExportFormat)}"
    )


def check_disk_bytes(kind: ExportFormat, raw_bytes: int) -> None:
    """Refuse a disk that is too large for a format.

    Raises:
        ConfigurationError: it is.
    """
    limit = QEMU_FORMATS[kind].disk_bytes_max if kind in QEMU_FORMATS else None
    if limit is not None and raw_bytes > limit:
        raise ConfigurationError(
            f"{kind} holds disks of at most {format_bytes(limit)}, and this one has {format_bytes(raw_bytes)}: choose "
            f"{ExportFormat.QCOW2} or {ExportFormat.RAW}"
        )
