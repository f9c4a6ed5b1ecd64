"""Choices of a technician, as text: numbered lists, and the confirmation of a disk. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from protocol.shared.units import format_bytes
from receiver.disk.inventory.block_devices import BlockDevice
from receiver.restore.listed_disks import ListedDisk, describe_model
from receiver.target.eligibility import verdict_text

COLUMNS: Final = 79
"""Width of a line: a serial console has 80 columns, and some terminals wrap after the last one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One entry of a numbered list: a line, and details below it."""

    text: str
    details: tuple[str, ...] = ()


def numbered(rows: Sequence[Row]) -> str:
    """Return a numbered list, each line cut to the console's width."""
    width = len(str(len(rows)))
    lines = []
    for number, row in enumerate(rows, 1):
        lines.append(f"  {number:{width}}  {row.text}")
        lines += [" " * (width + 4) + detail for detail in row.details]
    return "\n".join(shorten(line) for line in lines)


def shorten(line: str) -> str:
    """Return a line that fits on the console."""
    return line if len(line) <= COLUMNS else line[: COLUMNS - 3] + "..."


def parse_choice(text: str, count: int) -> int | None:
    """Return the index that a number from 1 to ``count`` names; None for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        return None
    number = int(text)
    return number - 1 if 1 <= number <= count else None


def disk_rows(disks: Sequence[ListedDisk]) -> list[Row]:
    """Return the list of disks, each with its content and a reason why it can't be used."""
    rows = []
    for listed in disks:
        disk = listed.disk
        verdict = f"can't be used: {verdict_text(disk, listed.refusal)}" if listed.refusal else ""
        details = tuple(filter(None, (f"holds {listed.contents.text}", verdict)))
        rows.append(Row(disk_text(disk), details))
    return rows


def confirmation_prompt(disk: BlockDevice) -> str:
    """Return the question that confirms the disk: the answer can't be typed without looking at it."""
    if disk.serial:
        return f"Type the serial number of {disk.path} to overwrite it (Ctrl-C: back):"
    return f"{disk.path} has no serial number. Type its name, {disk.name}, to overwrite it (Ctrl-C: back):"


def confirms(disk: BlockDevice, typed: str) -> bool:
    """Return whether ``typed`` is the serial number of ``disk``, in any letter case, or the name of a disk without one.

    Blanks don't count: some disks pad their numbers, and the console joins several to one.
    """
    serials = [serial for serial in disk.identity.serials if serial]
    if not serials:
        return typed.removeprefix("/dev/") == disk.name
    return _plain(typed) in {_plain(serial) for serial in serials}


def selector_of(disk: BlockDevice, disks: Sequence[ListedDisk]) -> str:
    """Return the ``--target`` that means exactly this disk, also if its name changes before it is opened."""
    serial = disk.serial
    same = [one for one in disks if serial and serial in one.disk.identity.serials]
    return f"serial={serial}" if len(same) == 1 else str(disk.path)


def disk_text(disk: BlockDevice) -> str:
    """Return a description of a disk, also for the operator who approves."""
    return f"{device_text(disk)}, {format_bytes(disk.size_bytes)}"


def device_text(disk: BlockDevice) -> str:
    """Return path, model and serial number of a disk."""
    model = describe_model(disk)
    named = f"{disk.path}{' ' if model.startswith('(') else ', ' if model else ''}{model}"
    return f"{named}, {f'serial {disk.serial}' if disk.serial else 'no serial number'}"


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()
