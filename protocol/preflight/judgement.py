"""The judgement of one machine for one image: a row of checks, each with its grade, reason and fix.

A refusal is certain: the cast would fail, or the disk couldn't start. Doubts are warnings, and drivers only ever are:
an installer or a firmware may add what the image doesn't have. Facts that nobody has reported are unknown.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Final

from protocol.constants import MIB
from protocol.model.hardware import FirmwareKind, Hardware, HardwareDisk, SmartVerdict
from protocol.preflight.requirements import DriverAliases, ImageRequirements
from protocol.preflight.sectors import sector_problem
from protocol.shared.units import format_bytes

MEMORY_BYTES_MIN: Final = 384 * MIB
"""Memory with which a cast completes in the live system (measured); MemTotal is some MiB less than the memory."""
_MEMORY_SLACK_BYTES: Final = 48 * MIB
"""Memory that the kernel and the firmware keep from MemTotal."""

_WORN_PERCENT: Final = 100
"""Wear at which a solid-state disk has reached its rated life."""
_NAMED_MAX: Final = 4
"""Disks and devices that a reason names."""

_RUNS: Final = {"x86_64": {"x86_64", "i686"}, "aarch64": {"aarch64", "armv7l"}}
"""Architectures of the programs that a kernel's machine runs, besides its own."""


class Grade(enum.StrEnum):
    """The result of a check, from good to bad."""

    OK = "ok"
    UNKNOWN = "unknown"
    """The machine hasn't reported the fact, or the image doesn't show its requirement."""
    WARN = "warn"
    """The cast works; an operator should know the doubt."""
    REFUSE = "refuse"
    """The machine is excluded before anything is written."""


class Subject(enum.StrEnum):
    """The subject of a check, in the order of a report."""

    DISK = "disk"
    SECTORS = "sectors"
    HEALTH = "health"
    ARCHITECTURE = "architecture"
    FIRMWARE = "firmware"
    SECURE_BOOT = "secure boot"
    MEMORY = "memory"
    DRIVERS = "drivers"


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        reason: the facts, for people.
        fix: advice; empty if nothing has to be fixed.
    """

    subject: Subject
    grade: Grade
    reason: str
    fix: str = ""

    @property
    def text(self) -> str:
        """Return reason and fix."""
        return f"{self.reason}: {self.fix}" if self.fix else self.reason


def judge_machine(
    image: ImageRequirements, hardware: Hardware | None, drivers: DriverAliases | None = None
) -> tuple[Check, ...]:
    """Return the checks of a machine, one for each subject, in their order.

    Args:
        image: requirements of the image.
        hardware: hardware that the machine's agent has reported; None if it hasn't yet.
        drivers: devices for which the image has drivers; None if they are unknown.
    """
    if hardware is None:
        reason, fix = "its agent hasn't reported its hardware", "start the agent once"
        return tuple(Check(subject, Grade.UNKNOWN, reason, fix) for subject in Subject)
    disk, fitting = _check_disk(image, hardware)
    sectors, usable = _check_sectors(image, fitting)
    return (
        disk,
        sectors,
        _check_health(usable),
        _check_architecture(image, hardware),
        check_firmware(image.firmwares, hardware.firmware),
        _check_secure_boot(image, hardware),
        check_memory(hardware.memory_bytes),
        _check_drivers(hardware, drivers),
    )


def worst_grade(checks: Iterable[Check]) -> Grade:
    """Return the worst grade; an unknown fact is better than a warning."""
    order = list(Grade)
    return max((check.grade for check in checks), key=order.index, default=Grade.OK)


def refusal_text(checks: Iterable[Check]) -> str:
    """Return the reasons of the refusals with their fixes; empty if no check refuses."""
    return "; ".join(check.text for check in checks if check.grade is Grade.REFUSE)


def check_firmware(wanted: tuple[FirmwareKind, ...], own: FirmwareKind) -> Check:
    """Compare the firmware by which a machine was booted with those by which an image starts."""
    if own is FirmwareKind.UNKNOWN:
        return Check(Subject.FIRMWARE, Grade.UNKNOWN, "the machine doesn't show its firmware")
    booted = f"the machine was booted by {own.upper()}"
    if not wanted:
        return Check(Subject.FIRMWARE, Grade.OK, f"{booted}; the image may be for either")
    if own in wanted:
        return Check(Subject.FIRMWARE, Grade.OK, f"{booted}, and the image starts by it")
    return Check(
        Subject.FIRMWARE,
        Grade.WARN,
        f"{booted}, the image starts by {' or '.join(kind.upper() for kind in wanted)}",
        "change the firmware's setup afterwards, or choose another image",
    )


def check_memory(memory_bytes: int) -> Check:
    """Compare a machine's memory with the need of the live system; 0 if it is unknown."""
    needed = f"{format_bytes(MEMORY_BYTES_MIN)} are needed"
    if not memory_bytes:
        return Check(Subject.MEMORY, Grade.UNKNOWN, f"unknown; {needed}")
    if memory_bytes < MEMORY_BYTES_MIN - _MEMORY_SLACK_BYTES:
        return Check(
            Subject.MEMORY,
            Grade.WARN,
            f"{format_bytes(memory_bytes)}; {needed}",
            "add memory, or expect the cast to fail on this machine",
        )
    return Check(Subject.MEMORY, Grade.OK, format_bytes(memory_bytes))


def _check_disk(image: ImageRequirements, hardware: Hardware) -> tuple[Check, list[HardwareDisk]]:
    """Return the check of the size, and the disks that are large enough."""
    if hardware.target_is_file:
        reason = f"the target {hardware.target} isn't a whole disk: the agent checks it"
        return Check(Subject.DISK, Grade.OK, reason), []
    candidates = [disk for disk in hardware.disks if disk.is_candidate]
    fitting = [disk for disk in candidates if disk.size_bytes >= image.raw_bytes]
    if fitting:
        return Check(
            Subject.DISK, Grade.OK, f"{_named(fitting)}; the image {format_bytes(image.raw_bytes)}"
        ), fitting
    if candidates:
        reason = f"{_named(candidates)} is smaller than the image, {format_bytes(image.raw_bytes)}"
        fix = "use a larger disk, or shrink the image's partitions and pack it again"
        return Check(Subject.DISK, Grade.REFUSE, reason, fix), []
    present = (
        f"it has {_named(hardware.disks)}" if hardware.disks else "it has no disk that its kernel can use"
    )
    bare = [controller.device_id for controller in hardware.controllers if not controller.driver]
    present += f", and no driver uses its disk controller {_list(bare)}" if bare else ""
    reason = f"no disk is the target {hardware.target!r}: {present}"
    fix = "check cables and the firmware's storage mode (AHCI), or the agent's --target"
    return Check(Subject.DISK, Grade.REFUSE, reason, fix), []


def _check_sectors(image: ImageRequirements, disks: list[HardwareDisk]) -> tuple[Check, list[HardwareDisk]]:
    """Return the check of the sectors, and the disks with the right ones."""
    if not disks:
        return Check(Subject.SECTORS, Grade.UNKNOWN, "no disk to check"), []
    problems = [(disk, sector_problem(image.sectors, disk.sector_bytes)) for disk in disks]
    usable = [disk for disk, problem in problems if problem is None]
    if usable:
        return Check(Subject.SECTORS, Grade.OK, f"{usable[0].sector_bytes} bytes"), usable
    disk, problem = problems[0]
    assert problem is not None
    return Check(Subject.SECTORS, Grade.REFUSE, f"{disk.name} has {problem.reason}", problem.fix), []


def _check_health(disks: list[HardwareDisk]) -> Check:
    failing = [disk for disk in disks if disk.health.verdict is SmartVerdict.FAILING]
    if failing:
        fix = "replace the disk before it loses data"
        return Check(Subject.HEALTH, Grade.WARN, f"SMART predicts the failure of {_named(failing)}", fix)
    worn = [disk for disk in disks if (disk.health.used_percent or 0) >= _WORN_PERCENT]
    if worn:
        reason = f"{_named(worn)} has reached its rated life ({worn[0].health.used_percent} % used)"
        return Check(Subject.HEALTH, Grade.WARN, reason, "plan its replacement")
    if any(disk.health.verdict is SmartVerdict.PASSED for disk in disks):
        return Check(Subject.HEALTH, Grade.OK, "SMART passed")
    return Check(Subject.HEALTH, Grade.UNKNOWN, "the disk doesn't show its health")


def _check_architecture(image: ImageRequirements, hardware: Hardware) -> Check:
    own, wanted = hardware.architecture, image.architecture
    if not wanted:
        return Check(Subject.ARCHITECTURE, Grade.UNKNOWN, f"{own}; that of the image is unknown")
    if wanted in _RUNS.get(own, {own}):
        return Check(Subject.ARCHITECTURE, Grade.OK, own)
    return Check(
        Subject.ARCHITECTURE,
        Grade.REFUSE,
        f"the machine is {own}, the image's programs are for {wanted}",
        f"choose an image for {own}",
    )


def _check_secure_boot(image: ImageRequirements, hardware: Hardware) -> Check:
    if hardware.firmware is not FirmwareKind.UEFI or not hardware.secure_boot:
        return Check(Subject.SECURE_BOOT, Grade.OK, "not enforced")
    if image.signed_loader is None:
        return Check(Subject.SECURE_BOOT, Grade.UNKNOWN, "enforced; the image's loader is unknown")
    if image.signed_loader:
        return Check(Subject.SECURE_BOOT, Grade.OK, "enforced, and the image has a signed loader")
    return Check(
        Subject.SECURE_BOOT,
        Grade.WARN,
        "enforced, and no signed loader was found in the image",
        "install the signed shim in the image, or switch Secure Boot off",
    )


def _check_drivers(hardware: Hardware, drivers: DriverAliases | None) -> Check:
    bare = [card.device_id for card in hardware.cards if not card.driver]
    if bare:
        return Check(
            Subject.DRIVERS,
            Grade.WARN,
            f"no driver of the running system uses {_list(bare)}",
            "boot a live system with a newer kernel, or use another card",
        )
    if drivers is None:
        return Check(Subject.DRIVERS, Grade.UNKNOWN, "the image's drivers are unknown")
    devices = [(card.device_id, card.modalias) for card in hardware.cards]
    # A chipset has controllers that nothing is attached to: those without a driver here matter to no disk.
    used = [controller for controller in hardware.controllers if controller.driver]
    devices += [(controller.device_id, controller.modalias) for controller in used]
    missing = [device_id for device_id, modalias in devices if modalias and not drivers.has_driver(modalias)]
    if missing:
        return Check(
            Subject.DRIVERS,
            Grade.WARN,
            f"the image's kernel has no driver for {_list(missing)}",
            "install a kernel with that driver in the image",
        )
    return Check(Subject.DRIVERS, Grade.OK, "the image has drivers for its cards and controllers")


def _named(disks: Iterable[HardwareDisk]) -> str:
    return _list([f"{disk.name} ({format_bytes(disk.size_bytes)})" for disk in disks])


def _list(names: list[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - _NAMED_MAX} more" if len(shown) > _NAMED_MAX else ""
    return ", ".join(shown[:_NAMED_MAX]) + more
