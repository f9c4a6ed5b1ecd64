"""Identity of a source for an acquisition report: model, serial number and sectors of a device, as sysfs shows them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Final

from protocol.packing.source import Source

_SYS_BLOCK: Final = Path("/sys/dev/block")
_VPD_HEADER_BYTES: Final = 4
_TEXT_CHARS_MAX: Final = 128


@dataclasses.dataclass(frozen=True, slots=True)
class SourceIdentity:
    """A disk or file that was read; empty texts where the kernel knows nothing."""

    path: str
    is_device: bool
    raw_bytes: int
    logical_sector_bytes: int
    physical_sector_bytes: int
    vendor: str = ""
    model: str = ""
    serial: str = ""
    firmware: str = ""
    wwid: str = ""


def identify_source(source: Source) -> SourceIdentity:
    """Return the identity of an open source."""
    plain = SourceIdentity(
        os.fspath(source.path),
        source.is_device,
        source.raw_bytes,
        source.logical_sector_bytes,
        source.logical_sector_bytes,
    )
    if not source.is_device:
        return plain
    number = source.status.st_rdev
    folder = (_SYS_BLOCK / f"{os.major(number)}:{os.minor(number)}").resolve()
    if (folder / "partition").exists():
        folder = folder.parent
    device = folder / "device"
    physical = _text(folder / "queue/physical_block_size")
    return dataclasses.replace(
        plain,
        physical_sector_bytes=int(physical) if physical.isdecimal() else plain.logical_sector_bytes,
        vendor=_text(device / "vendor"),
        model=_text(device / "model"),
        serial=_text(device / "serial") or _text(folder / "serial") or _unit_serial(device / "vpd_pg80"),
        firmware=_text(device / "firmware_rev") or _text(device / "rev"),
        wwid=_text(folder / "wwid") or _text(device / "wwid"),
    )


def _text(path: Path) -> str:
    try:
        return _printable(path.read_bytes())
    except OSError:
        return ""


def _unit_serial(path: Path) -> str:
    """Return the serial number in a SCSI disk's page 80h (SPC-4, 7.8.14)."""
    try:
        return _printable(path.read_bytes()[_VPD_HEADER_BYTES:])
    except OSError:
        return ""


def _printable(data: bytes) -> str:
    """Return text of a device, which may hold anything."""
    text = data.decode("ascii", "replace").strip(" \n\0")
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_TEXT_CHARS_MAX]
