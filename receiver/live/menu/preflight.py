"""Checks before a technician overwrites a disk: signature, size, firmware, memory, and the contents that are lost.

The rules for machines are those of :mod:`protocol.preflight`, which the daemon applies to whole rooms.
"""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Final

from protocol.disk.partition_table import DiskLayout
from protocol.model.hardware import Hardware
from protocol.preflight.judgement import Check, Grade, check_firmware, check_memory
from protocol.preflight.requirements import firmwares_of
from protocol.shared.units import format_bytes
from protocol.trust.image_policy import AcceptedImage
from receiver.disk.inventory.block_devices import BlockDevice
from receiver.live.menu.choices import COLUMNS, device_text
from receiver.restore.listed_disks import ListedDisk

_WORDS: Final = {Grade.OK: "ok", Grade.UNKNOWN: "CHECK", Grade.WARN: "CHECK", Grade.REFUSE: "NO"}
"""The result of a check, in the word that the technician reads."""


@dataclasses.dataclass(frozen=True, slots=True)
class MenuCheck:
    """A line of the menu's preflight."""

    grade: Grade
    subject: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about the chosen image.

    Attributes:
        layout: partition table of the imaged disk; None if it isn't known before the cast.
    """

    name: str
    raw_bytes: int
    layout: DiskLayout | None = None


def check_all(
    image: ImageFacts, accepted: AcceptedImage | str, listed: ListedDisk, hardware: Hardware
) -> list[MenuCheck]:
    """Return the results of all checks, in the order in which they are shown.

    Args:
        image: the chosen image.
        accepted: the image as this machine accepts it, or the reason why it doesn't.
        listed: the chosen disk.
        hardware: this machine's.
    """
    return [
        _check_signature(accepted),
        _check_disk(image, listed),
        _line(check_firmware(firmwares_of(image.layout), hardware.firmware)),
        _line(check_memory(hardware.memory_bytes)),
        _check_contents(listed),
    ]


def report(checks: list[MenuCheck]) -> str:
    """Return the results as lines."""
    width = max(len(check.subject) for check in checks)
    lines = []
    for check in checks:
        start = f"  {_WORDS[check.grade]:5}  {check.subject:{width}}  "
        indent = " " * len(start)
        wrapped = textwrap.wrap(start + check.text, COLUMNS, subsequent_indent=indent, drop_whitespace=False)
        lines += [line.rstrip() for line in wrapped]
    return "\n".join(lines)


def refused(checks: list[MenuCheck]) -> bool:
    """Return whether a check forbids to continue."""
    return any(check.grade is Grade.REFUSE for check in checks)


def _line(check: Check) -> MenuCheck:
    return MenuCheck(check.grade, check.subject, check.text)


def _check_signature(accepted: AcceptedImage | str) -> MenuCheck:
    subject = "signature"
    if isinstance(accepted, str):
        return MenuCheck(Grade.REFUSE, subject, accepted)
    if accepted.verified is None:
        return MenuCheck(Grade.WARN, subject, f"not trusted, but allowed: {accepted.reason}")
    statement, key = accepted.verified.statement, accepted.verified.key
    return MenuCheck(
        Grade.OK,
        subject,
        f"{statement.name}, version {statement.version}, signed by {key.name} ({key.key.id_text})",
    )


def _check_disk(image: ImageFacts, listed: ListedDisk) -> MenuCheck:
    disk = listed.disk
    if listed.refusal is not None:
        return MenuCheck(Grade.REFUSE, "disk", f"{listed.refusal.reason}: {listed.refusal.fix}")
    text = f"{disk.path} has {format_bytes(disk.size_bytes)}, the image {format_bytes(image.raw_bytes)}"
    if disk.removable:
        return MenuCheck(Grade.WARN, "disk", f"{text}; it is removable: is it the disk to image?")
    return MenuCheck(Grade.OK, "disk", text)


def _check_contents(listed: ListedDisk) -> MenuCheck:
    return MenuCheck(Grade.WARN, "erases", erased_text(listed.disk, listed.contents.text))


def erased_text(disk: BlockDevice, contents: str) -> str:
    """Return what will be lost."""
    return f"{device_text(disk)}; it holds {contents}"
