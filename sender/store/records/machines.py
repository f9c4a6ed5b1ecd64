"""Rooms, machines, and results of an import of machines."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime

from sender.store.records.api_schema import OpenStrEnum


class EnrolmentMode(enum.StrEnum):
    """The rule for machines that enrol."""

    TOKEN = "token"  # noqa: S105 - a choice
    """A valid token for enrolment is enough."""
    APPROVE = "approve"
    """An operator also approves each machine, by a code that the machine shows."""


class EnrolmentState(OpenStrEnum):
    """A machine's enrolment."""

    NEW = "new"
    """Known, but without a secret: added by an operator, or by an earlier version of diskcast."""
    WAITING = "waiting"
    """An agent shows a code and waits for an operator's approval."""
    APPROVED = "approved"
    """Approved; its agent gets the machine's secret at its next check-in."""
    ENROLLED = "enrolled"
    """It has a secret."""
    BLOCKED = "blocked"
    """Revoked: it can't check in, and it can't enrol until an operator readmits it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """A named set of machines.

    Attributes:
        room_id: lower case letters, digits and hyphens.
        site: daemons cast only for rooms of the sites that they serve; empty: any daemon.
        interface: network interface of the sender for this room; empty: chosen by the daemon.
        enrolment: rule for its machines that enrol; empty: the daemon's.
        machine_count: number of its machines.
        unknown_machines: rule for unknown machines that boot over the network; empty: the daemon's.
        boot_menu: a machine that boots from its disk offers the menu of the live system first.
        wake_wave_size: machines that are woken at the same time; None: the daemon's number.
        wake_pause_s: seconds from one wave of them to the next; None: the daemon's.
    """

    room_id: str
    name: str
    description: str
    site: str
    interface: str
    created_at: datetime
    machine_count: int = 0
    enrolment: str = ""
    unknown_machines: str = ""
    boot_menu: bool = True
    wake_wave_size: int | None = None
    wake_pause_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """A machine, switched on or not.

    Attributes:
        machine_id: id that the store has created.
        macs: hardware addresses, lower case with colons.
        address: last known network address.
        inventory: hardware and software as its agent describes it.
        agent_version: version of its agent; empty before its first check-in.
        position: place for people, for example ``row 2, seat 5``.
        enrolled_at: time at which it got its secret.
        enrolled_by: token with which it enrolled, and the operator who approved it.
        approval_code: code that its agent shows while it waits for approval; empty otherwise.
        claimed_at: time of the last claim to be this machine by an agent that isn't, or isn't yet, admitted.
        claimed_from: network address of that agent.
        uuid: UUID of its firmware, as its boot loader reported it.
        next_boot: ``live`` if it boots the live system next time, whatever is planned; then empty again.
        booted_at: time of its last boot over the network.
        boot_action: decision about that boot: ``live`` or ``disk``; empty without one.
        boot_text: reason for that decision, for people.
        boot_firmware: firmware of that boot, as :class:`BootFirmware`.
    """

    machine_id: str
    name: str
    room_id: str | None
    macs: tuple[str, ...]
    serial: str
    asset_tag: str
    position: str
    note: str
    address: str
    agent_version: str
    inventory: dict[str, str]
    created_at: datetime
    last_seen_at: datetime | None
    enrolment: EnrolmentState = EnrolmentState.NEW
    enrolled_at: datetime | None = None
    enrolled_by: str = ""
    approval_code: str = ""
    claimed_at: datetime | None = None
    claimed_from: str = ""
    uuid: str = ""
    next_boot: str = ""
    booted_at: datetime | None = None
    boot_action: str = ""
    boot_text: str = ""
    boot_firmware: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class MachineRevocation:
    """A revocation that counts at the daemon that answers.

    Attributes:
        recorded: true if the database has it; other daemons follow within seconds, otherwise when it is available.
    """

    machine_id: str
    recorded: bool


@dataclasses.dataclass(frozen=True, slots=True)
class ImportProblem:
    """A problem in a line of an imported file; lines count from 1."""

    line: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class ImportResult:
    """Result of an import: all lines of a file, or nothing if there are ``problems``."""

    added: int
    changed: int
    unchanged: int
    problems: tuple[ImportProblem, ...]
