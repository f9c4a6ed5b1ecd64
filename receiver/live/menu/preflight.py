"""Checks before a disk is overwritten: signature, size, firmware, memory. Pure, but for the facts of this machine."""

from __future__ import annotations

import dataclasses
import enum
import textwrap
from pathlib import Path
from typing import Final

from protocol.constants import MIB
from protocol.disk.partition_table import DiskLayout, TableKind
from protocol.shared.units import format_bytes
from protocol.trust.image_policy import AcceptedImage
from receiver.disk.fit.efi import find_efi_partition
from receiver.disk.inventory.block_devices import BlockDevice
from receiver.live.menu.choices import COLUMNS, device_text
from receiver.restore.listed_disks import ListedDisk

FIRMWARE: Final = Path("/sys/firmware/efi")
MEMORY_INFO: Final = Path("/proc/meminfo")

MEMORY_BYTES_MIN: Final = 384 * MIB
"""Memory with which a cast completes in the live system (measured); MemTotal is some MiB less than the memory."""
_MEMORY_SLACK_BYTES: Final = 48 * MIB
"""Memory that the kernel and the firmware keep from MemTotal."""

_BIOS_BOOT: Final = "21686148-6449-6E6F-744E-656564454649"
"""GPT type of the partition in which GRUB keeps its core for BIOS."""


class Grade(enum.StrEnum):
    """The result of a check, in the word that the technician reads."""

    OK = "ok"
    WARNING = "CHECK"
    REFUSED = "NO"


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    grade: Grade
    subject: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class MachineFacts:
    """Facts about this machine.

    Attributes:
        uefi: booted by UEFI; otherwise by BIOS.
        memory_bytes: the kernel's MemTotal; 0 if it is unknown.
    """

    uefi: bool
    memory_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about the chosen image.

    Attributes:
        layout: partition table of the imaged disk; None if it isn't known before the cast.
    """

    name: str
    raw_bytes: int
    layout: DiskLayout | None = None


def read_machine_facts(firmware: Path = FIRMWARE, memory_info: Path = MEMORY_INFO) -> MachineFacts:
    """Return the facts about this machine."""
    memory_bytes = 0
    try:
        for line in memory_info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemTotal":
                memory_bytes = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        memory_bytes = 0
    return MachineFacts(firmware.is_dir(), memory_bytes)


def check_all(
    image: ImageFacts, accepted: AcceptedImage | str, listed: ListedDisk, machine: MachineFacts
) -> list[Check]:
    """Return the results of all checks, in the order in which they are shown.

    Args:
        image: the chosen image.
        accepted: the image as this machine accepts it, or the reason why it doesn't.
        listed: the chosen disk.
        machine: this machine.
    """
    return [
        _check_signature(accepted),
        _check_disk(image, listed),
        _check_firmware(image, machine),
        _check_memory(machine),
        _check_contents(listed),
    ]


def report(checks: list[Check]) -> str:
    """Return the results as lines."""
    width = max(len(check.subject) for check in checks)
    lines = []
    for check in checks:
        start = f"  {check.grade.value:5}  {check.subject:{width}}  "
        indent = " " * len(start)
        wrapped = textwrap.wrap(start + check.text, COLUMNS, subsequent_indent=indent, drop_whitespace=False)
        lines += [line.rstrip() for line in wrapped]
    return "\n".join(lines)


def refused(checks: list[Check]) -> bool:
    """Return whether a check forbids to continue."""
    return any(check.grade is Grade.REFUSED for check in checks)


def _check_signature(accepted: AcceptedImage | str) -> Check:
    subject = "signature"
    if isinstance(accepted, str):
        return Check(Grade.REFUSED, subject, accepted)
    if accepted.verified is None:
        return Check(Grade.WARNING, subject, f"not trusted, but allowed: {accepted.reason}")
    statement, key = accepted.verified.statement, accepted.verified.key
    return Check(
        Grade.OK,
        subject,
        f"{statement.name}, version {statement.version}, signed by {key.name} ({key.key.id_text})",
    )


def _check_disk(image: ImageFacts, listed: ListedDisk) -> Check:
    disk = listed.disk
    if listed.refusal is not None:
        return Check(Grade.REFUSED, "disk", f"{listed.refusal.reason}: {listed.refusal.fix}")
    text = f"{disk.path} has {format_bytes(disk.size_bytes)}, the image {format_bytes(image.raw_bytes)}"
    if disk.removable:
        return Check(Grade.WARNING, "disk", f"{text}; it is removable: is it the disk to image?")
    return Check(Grade.OK, "disk", text)


def _check_firmware(image: ImageFacts, machine: MachineFacts) -> Check:
    subject = "firmware"
    own = "UEFI" if machine.uefi else "BIOS"
    wanted = firmwares_of(image.layout)
    if not wanted:
        return Check(Grade.OK, subject, f"this machine was booted by {own}; the image may be for either")
    if own in wanted:
        return Check(Grade.OK, subject, f"this machine was booted by {own}, and the image starts by it")
    return Check(
        Grade.WARNING,
        subject,
        f"this machine was booted by {own}, the image starts by {' or '.join(wanted)}: change the firmware's setup "
        "afterwards, or choose another image",
    )


def firmwares_of(layout: DiskLayout | None) -> tuple[str, ...]:
    """Return the firmwares by which a disk of this layout can start; empty if that is unknown."""
    if layout is None or layout.table is TableKind.NONE:
        return ()
    uefi = find_efi_partition(layout) is not None
    if layout.table is TableKind.GPT:
        bios = any(part.type == _BIOS_BOOT for part in layout.partitions)
        return (*(["UEFI"] if uefi else []), *(["BIOS"] if bios else []))
    # An MBR has its boot code before the first partition, which the layout doesn't show.
    return ("UEFI", "BIOS") if uefi else ("BIOS",)


def _check_memory(machine: MachineFacts) -> Check:
    text = f"{format_bytes(machine.memory_bytes)}"
    if not machine.memory_bytes:
        return Check(Grade.WARNING, "memory", f"unknown; {format_bytes(MEMORY_BYTES_MIN)} are needed")
    if machine.memory_bytes < MEMORY_BYTES_MIN - _MEMORY_SLACK_BYTES:
        return Check(Grade.WARNING, "memory", f"{text}; {format_bytes(MEMORY_BYTES_MIN)} are needed")
    return Check(Grade.OK, "memory", text)


def _check_contents(listed: ListedDisk) -> Check:
    return Check(Grade.WARNING, "erases", erased_text(listed.disk, listed.contents.text))


def erased_text(disk: BlockDevice, contents: str) -> str:
    """Return what will be lost."""
    return f"{device_text(disk)}; it holds {contents}"
