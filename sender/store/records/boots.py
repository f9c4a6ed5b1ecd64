"""Boots over the network: the report of a boot service about a machine, and the daemon's decision."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime

from sender.store.records.api_schema import ClosedObject, OpenStrEnum

BOOT_PATH = "/boots"
"""Path below ``API_BASE``."""


class BootFirmware(enum.StrEnum):
    """The firmware that boots a machine, or the boot chain that it demands."""

    UNKNOWN = ""
    BIOS = "bios"
    UEFI = "uefi"
    UEFI_HTTP = "uefi-http"
    """UEFI that loads files by HTTP itself."""
    SECURE = "secure"
    """UEFI with Secure Boot: shim and GRUB."""


class BootAction(OpenStrEnum):
    """The system that a machine boots."""

    LIVE = "live"
    """The live system with the agent."""
    DISK = "disk"
    """The disk of the machine."""


class BootMode(OpenStrEnum):
    """The mode of the live system."""

    RUN = "run"
    """The agent checks in and waits for a cast."""
    MENU = "menu"
    """A person at the console chooses an image."""


class BootReason(OpenStrEnum):
    """The reason for a decision; also a label of a metric."""

    CAST = "cast"
    """A cast waits for the machine."""
    CAPTURE = "capture"
    """A capture of the machine's disk isn't finished."""
    REQUESTED = "requested"
    """An operator asked for the live system at the next boot."""
    MENU = "menu"
    """A person at the console asked for the menu."""
    UNKNOWN_MACHINE = "unknown_machine"
    """The machine is unknown, and its room registers such machines."""
    APPROVAL = "approval"
    """The machine registered by booting, and still waits for approval."""
    NOTHING_PLANNED = "nothing_planned"
    NOT_REGISTERED = "not_registered"
    """The machine is unknown, and its room doesn't register such machines."""
    REVOKED = "revoked"
    OTHER_ROOM = "other_room"
    """The machine is in another room than the token of the boot service."""
    MENU_OFF = "menu_off"
    """The room has no menu."""
    TOO_MANY = "too_many"
    """Too many boot tokens are unused."""

    @property
    def action(self) -> BootAction:
        """The system that a machine boots for this reason."""
        return BootAction.LIVE if self in _LIVE_REASONS else BootAction.DISK


_LIVE_REASONS = frozenset(
    {
        BootReason.CAST,
        BootReason.CAPTURE,
        BootReason.REQUESTED,
        BootReason.MENU,
        BootReason.UNKNOWN_MACHINE,
        BootReason.APPROVAL,
    }
)


class UnknownMachines(enum.StrEnum):
    """The rule for unknown machines that boot."""

    OFF = "off"
    """They boot from their disks."""
    ASK = "ask"
    """They boot the live system and wait for an operator's approval."""
    AUTO = "auto"
    """They boot the live system and enrol, by the rule of their room."""


@dataclasses.dataclass(frozen=True, slots=True)
class BootReport:
    """A machine that boots, as a boot service sees it: the body of ``POST /boots``.

    Attributes:
        mac: hardware address of the network card that boots, lower case with colons.
        uuid: UUID of its firmware (SMBIOS) as text; empty if unknown.
        serial: serial number of its firmware; empty if unknown.
        address: network address of the machine; empty if unknown.
        architecture: of its processor, for example ``x86_64``; empty if unknown.
        room_id: room of the boot service, for unknown machines; None for no room.
        menu: a person at the console asks for the menu.
    """

    mac: str
    uuid: str = ""
    serial: str = ""
    address: str = ""
    firmware: BootFirmware = BootFirmware.UNKNOWN
    architecture: str = ""
    room_id: str | None = None
    menu: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class BootAnswer(ClosedObject):
    """The system that a machine boots.

    Attributes:
        mode: mode of the live system.
        machine: name of the machine; empty for an unknown one.
        machine_id: its id; None for an unknown one.
        reason: kind of the reason.
        text: the reason, for people.
        boot_token: single-use bearer for the machine's first check-in; empty with the action ``disk``.
        servers: URLs of the daemon for the machine; empty if only programs on the daemon's machine can reach it.
        pins: pins of the daemon's certificate.
        menu_offered: the boot service may offer the menu before it boots the disk.
    """

    action: BootAction
    mode: BootMode
    machine: str
    machine_id: str | None
    reason: BootReason
    text: str
    boot_token: str = dataclasses.field(default="", repr=False)
    servers: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()
    menu_offered: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class BootToken:
    """A boot token without its secret.

    Attributes:
        token_hash: SHA-256 of the secret.
        mac: hardware address that the check-in must have.
        machine_id: the machine that it enrols; None for one that was unknown when it booted.
        room_id: room that an unknown machine enters; None for no room.
        needs_approval: an operator must approve the machine, whatever the rule of its room.
        issued_by: name of the boot service's token.
        run_hash: SHA-256 of the id of the agent's run that used it first; empty before.
    """

    token_hash: str = dataclasses.field(repr=False)
    mac: str
    machine_id: str | None
    room_id: str | None
    needs_approval: bool
    issued_at: datetime
    expires_at: datetime
    issued_by: str
    run_hash: str = ""
    used_at: datetime | None = None
