"""Decisions about boots: the live system for a machine that has something to do there, its disk for any other."""

from __future__ import annotations

import dataclasses

import structlog

from sender.actors import Actor
from sender.daemon.boots.booting_machines import BootingMachines
from sender.daemon.captures.capture_desk import CaptureDesk
from sender.daemon.jobs.awaited_casts import AwaitedCasts
from sender.metrics.boot_metrics import BOOTS
from sender.refusals import forbidden, invalid
from sender.store.group_commit import GroupCommit
from sender.store.machines.claims import secret_hash
from sender.store.records.boots import (
    BootAction,
    BootAnswer,
    BootMode,
    BootReason,
    BootReport,
    BootToken,
    UnknownMachines,
)
from sender.store.records.captures import Capture
from sender.store.records.casts import Cast
from sender.store.records.machines import EnrolmentState
from sender.store.repositories.boots import TOKEN_LIFETIME, BootSubject, DecidedBoot, new_boot_token
from sender.store.store import Store

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """A decision about one boot.

    Attributes:
        text: the reason, for people.
        needs_approval: an operator must approve the machine, whatever the rule of its room.
    """

    reason: BootReason
    text: str
    needs_approval: bool = False

    @property
    def action(self) -> BootAction:
        """The system that the machine boots."""
        return self.reason.action

    @property
    def mode(self) -> BootMode:
        """The mode of the live system."""
        return BootMode.MENU if self.reason is BootReason.MENU else BootMode.RUN


class BootDecisions:
    """The decisions of a daemon. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        awaited: AwaitedCasts,
        booting: BootingMachines,
        captures: CaptureDesk,
        unknown_machines: UnknownMachines,
    ) -> None:
        """Decide boots.

        Args:
            store: has the machines, and keeps the boot tokens.
            awaited: casts that wait for machines.
            booting: learns of machines that boot the live system.
            captures: knows the machines whose disks are to be captured.
            unknown_machines: rule for rooms without one of their own, and for machines without a room.
        """
        self._store = store
        self._awaited = awaited
        self._booting = booting
        self._captures = captures
        self._unknown_machines = unknown_machines
        self._recording = GroupCommit(store, store.boots.record)

    async def decide(self, report: BootReport, actor: Actor, room_id: str | None) -> BootAnswer:
        """Decide one boot, and issue a boot token for the live system.

        Args:
            report: the machine; without a room it is in ``room_id``.
            actor: the boot service.
            room_id: room of the boot service's token; None for all rooms.

        Raises:
            RequestRefusedError: the report is about another room than the token, or about an unknown one.
            DatabaseError: the database is unavailable; the machine boots from its disk.
        """
        if room_id is not None and report.room_id not in (None, room_id):
            raise forbidden(f"the token is for room {room_id!r}, not for room {report.room_id!r}")
        report = dataclasses.replace(report, room_id=report.room_id or room_id)
        subject: BootSubject = await self._store.run(self._store.boots.subject, report)
        machine = subject.machine
        if report.room_id is not None and machine is None and subject.room is None:
            raise invalid(f"room_id: there is no room {report.room_id!r}")
        rule = UnknownMachines(
            (subject.room.unknown_machines if subject.room else "") or self._unknown_machines
        )
        cast = None if machine is None else await self._awaited.find(machine)
        capture = None if machine is None else self._captures.of_machine(machine.machine_id)
        decision = decide_boot(report, subject, cast, rule, capture=capture, token_room_id=room_id)
        if decision.reason is BootReason.OTHER_ROOM:
            # A token of one room neither reads nor changes anything of a machine of another.
            subject = dataclasses.replace(subject, machine=None, room=None)
            machine = None
        secret = await self._record(report, subject, decision, actor)
        if decision.action is BootAction.LIVE and not secret:
            decision = Decision(
                BootReason.TOO_MANY, "too many machines boot at once: boot again in some minutes"
            )
        BOOTS.labels(decision.action.value, decision.reason.value).inc()
        name = "" if machine is None else machine.name
        _log.info(
            "boot_decided",
            mac=report.mac,
            machine=name,
            action=decision.action.value,
            reason=decision.reason.value,
            firmware=report.firmware.value,
            address=report.address,
        )
        return BootAnswer(
            action=decision.action,
            mode=decision.mode,
            machine=name,
            machine_id=None if machine is None else machine.machine_id,
            reason=decision.reason,
            text=decision.text,
            boot_token=secret,
            menu_offered=decision.reason in (BootReason.NOTHING_PLANNED, BootReason.NOT_REGISTERED)
            and (subject.room is None or subject.room.boot_menu),
        )

    async def _record(
        self, report: BootReport, subject: BootSubject, decision: Decision, actor: Actor
    ) -> str:
        """Record a decision; return the secret of the boot token, empty if none is issued."""
        machine, secret, token = subject.machine, "", None
        if decision.action is BootAction.LIVE:
            secret, now = new_boot_token(), self._store.now()
            token = BootToken(
                token_hash=secret_hash(secret),
                mac=report.mac,
                machine_id=None if machine is None else machine.machine_id,
                room_id=report.room_id if machine is None else None,
                needs_approval=decision.needs_approval,
                issued_at=now,
                expires_at=now + TOKEN_LIFETIME,
                issued_by=actor.name,
            )
        if machine is None and token is None:
            return ""
        boot = DecidedBoot(
            report=report,
            machine_id=None if machine is None else machine.machine_id,
            action=decision.action,
            text=decision.text,
            token=token,
            audit=actor.note(),
        )
        if not await self._recording.submit(boot):
            return ""
        self._booting.look_again()
        return secret


def decide_boot(
    report: BootReport,
    subject: BootSubject,
    cast: Cast | None,
    rule: UnknownMachines,
    *,
    capture: Capture | None = None,
    token_room_id: str | None = None,
) -> Decision:
    """Return the decision about one boot.

    Args:
        report: the machine, as the boot service sees it.
        subject: the records about it.
        cast: a cast that waits for it.
        rule: the rule of its room for unknown machines.
        capture: an unfinished capture of its disk.
        token_room_id: room of the boot service's token; None for all rooms.
    """
    machine, room = subject.machine, subject.room
    if machine is not None:
        if machine.enrolment is EnrolmentState.BLOCKED:
            return Decision(BootReason.REVOKED, f"{machine.name} is revoked")
        if token_room_id is not None and machine.room_id not in (None, token_room_id):
            return Decision(
                BootReason.OTHER_ROOM, "the machine is in another room than the boot service's token"
            )
    if report.menu:
        if room is not None and not room.boot_menu:
            return Decision(BootReason.MENU_OFF, f"room {room.room_id} has no boot menu")
        # Anybody can ask for the menu at any time, so only an operator's approval makes this the machine.
        return Decision(BootReason.MENU, "the menu was chosen at the console", needs_approval=True)
    if machine is None:
        if rule is UnknownMachines.OFF:
            return Decision(BootReason.NOT_REGISTERED, "the machine is unknown, and unknown machines are off")
        return Decision(
            BootReason.UNKNOWN_MACHINE,
            "the machine is unknown and registers",
            needs_approval=rule is UnknownMachines.ASK,
        )
    # A serial number or UUID is only text in a request: it isn't enough to take an enrolled machine's place.
    unsure = not subject.by_mac
    if machine.next_boot == BootAction.LIVE:
        return Decision(BootReason.REQUESTED, "an operator asked for the live system", needs_approval=unsure)
    if capture is not None:
        text = f"capture {capture.capture_id} of {machine.name} isn't finished"
        return Decision(BootReason.CAPTURE, text, needs_approval=unsure)
    if cast is not None:
        text = f"cast {cast.cast_id} of {cast.image_name} waits for {machine.name}"
        return Decision(BootReason.CAST, text, needs_approval=unsure)
    waits = machine.enrolment in (EnrolmentState.WAITING, EnrolmentState.APPROVED)
    if waits and rule is not UnknownMachines.OFF and machine.enrolled_at is None:
        return Decision(
            BootReason.APPROVAL,
            f"{machine.name} waits for approval",
            needs_approval=unsure or rule is UnknownMachines.ASK,
        )
    return Decision(BootReason.NOTHING_PLANNED, f"nothing is planned for {machine.name}")
