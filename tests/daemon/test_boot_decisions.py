"""Decisions about boots: a machine boots the live system while something waits for it there, and its disk otherwise.

Lost if these fail: a room whose network card is first in the boot order never reaches its disks, or never its cast.
"""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from protocol.errors import DatabaseUnavailableError
from sender.actors import Actor
from sender.daemon.boots.boot_decisions import BootDecisions, Decision, decide_boot
from sender.daemon.boots.booting_machines import BootingMachines
from sender.daemon.jobs.awaited_casts import PLANNED_AHEAD, AwaitedCasts
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.ended_machines import EndedMachines
from sender.refusals import RequestRefusedError
from sender.store.machines.claims import secret_hash
from sender.store.records.boots import (
    BootAction,
    BootAnswer,
    BootMode,
    BootReason,
    BootReport,
    UnknownMachines,
)
from sender.store.records.captures import CapturePlan
from sender.store.records.casts import CastPhase
from sender.store.records.machines import EnrolmentState, Machine
from sender.store.repositories import boots as boots_module
from sender.store.repositories.audit import AuditNote
from sender.store.repositories.boots import BootSubject
from sender.store.store import Store
from tests.store.samples import add_cast, line, machine, room
from tests.support.idle_captures import idle_captures

MAC = "52:54:00:00:00:07"
SERVICE = Actor("boot server", "r1")
REPORT = BootReport(MAC)


class Desk:
    """The decisions of a daemon with one machine in the room ``lab``."""

    def __init__(self, store: Store, rule: UnknownMachines = UnknownMachines.OFF) -> None:
        self.store = store
        store.rooms.add(room("lab"))
        self.pc07: Machine = store.machines.add(machine("pc07", macs=(MAC,), room_id="lab"))
        self.registry = CastRegistry(ended_kept_s=0.0)
        self.booting = BootingMachines(store, self.registry)
        awaited = AwaitedCasts(self.registry, EndedMachines(store, self.registry))
        self.captures = idle_captures(store, self.registry.changes)
        self.decisions = BootDecisions(store, awaited, self.booting, self.captures, rule)

    def add_cast(self, cast_id: str = "00000001", **fields: Any) -> None:
        """Add an unfinished cast to the room, as the supervisor learns of it."""
        plan = fields.pop("plan", {"room_id": "lab"})
        cast = dataclasses.replace(add_cast(self.store, cast_id, **plan), **fields)
        self.registry.unfinished[cast_id] = cast

    def decide(self, report: BootReport = REPORT, room_id: str | None = None) -> BootAnswer:
        return asyncio.run(self.decisions.decide(report, SERVICE, room_id))


@pytest.fixture
def desk(store: Store) -> Desk:
    return Desk(store)


def test_a_machine_without_a_cast_boots_its_disk(desk: Desk) -> None:
    answer = desk.decide()
    assert (answer.action, answer.reason) == (BootAction.DISK, BootReason.NOTHING_PLANNED)
    assert (answer.machine, answer.machine_id) == ("pc07", desk.pc07.machine_id)
    assert answer.boot_token == ""
    assert answer.menu_offered
    recorded = desk.store.machines.get(desk.pc07.machine_id)
    assert recorded is not None
    assert recorded.boot_action == "disk"


@pytest.mark.parametrize("phase", [CastPhase.PLANNED, CastPhase.GATHERING, CastPhase.CASTING, CastPhase.TAIL])
def test_a_machine_that_a_cast_waits_for_boots_the_live_system(desk: Desk, phase: CastPhase) -> None:
    desk.add_cast(phase=phase)
    answer = desk.decide()
    assert (answer.action, answer.mode, answer.reason) == (BootAction.LIVE, BootMode.RUN, BootReason.CAST)
    assert answer.text == "cast 00000001 of windows waits for pc07"
    token = desk.store.boots.find(secret_hash(answer.boot_token))
    assert token is not None
    assert (token.mac, token.machine_id) == (MAC, desk.pc07.machine_id)
    assert answer.boot_token not in repr(answer)


def test_a_cast_of_another_room_or_of_tomorrow_keeps_no_machine_from_its_disk(desk: Desk) -> None:
    desk.add_cast("00000001", plan={"room_id": "attic"})
    desk.add_cast("00000002", plan={"machine_ids": ("m1",)})
    now = datetime.now(UTC)
    desk.add_cast("00000003", plan={"room_id": "lab", "start_at": now + PLANNED_AHEAD + timedelta(minutes=1)})
    assert desk.decide().action is BootAction.DISK
    desk.add_cast("00000004", plan={"room_id": "lab", "start_at": now + PLANNED_AHEAD - timedelta(minutes=1)})
    assert desk.decide().action is BootAction.LIVE


@pytest.mark.parametrize(("state", "action"), [("complete", "disk"), ("failed", "disk"), ("lost", "live")])
def test_a_machine_on_which_the_cast_has_ended_boots_its_disk(desk: Desk, state: str, action: str) -> None:
    """A room with the network first in its boot order must not be imaged again and again."""
    desk.add_cast(phase=CastPhase.CASTING)
    desk.store.casts.put_machines([line("00000001", machine_id=desk.pc07.machine_id, state=state)])
    assert desk.decide().action == action


def test_an_operators_wish_counts_until_the_agent_has_enrolled(desk: Desk) -> None:
    desk.store.machines.change(desk.pc07.machine_id, next_boot="live")
    for _ in range(2):
        assert desk.decide().reason is BootReason.REQUESTED, "a machine that fails to load it tries again"


def test_the_menu_always_needs_approval_and_can_be_turned_off(desk: Desk) -> None:
    """Anybody on the boot network can ask for it in the name of any machine."""
    desk.add_cast()
    menu = dataclasses.replace(REPORT, menu=True)
    answer = desk.decide(menu)
    assert (answer.action, answer.mode) == (BootAction.LIVE, BootMode.MENU)
    token = desk.store.boots.find(secret_hash(answer.boot_token))
    assert token is not None
    assert token.needs_approval
    desk.store.rooms.change("lab", boot_menu=False)
    refused = desk.decide(menu)
    assert (refused.action, refused.reason) == (BootAction.DISK, BootReason.MENU_OFF)
    desk.registry.unfinished.clear()
    assert not desk.decide().menu_offered


@pytest.mark.parametrize(
    ("rule", "action", "needs_approval"),
    [("off", "disk", None), ("ask", "live", True), ("auto", "live", False), ("", "disk", None)],
)
def test_unknown_machines_follow_the_rule_of_the_boot_services_room(
    desk: Desk, rule: str, action: str, needs_approval: bool | None
) -> None:
    desk.store.rooms.change("lab", unknown_machines=rule)
    answer = desk.decide(BootReport("52:54:00:00:00:99", room_id="lab"))
    assert (answer.action, answer.machine, answer.machine_id) == (action, "", None)
    token = desk.store.boots.find(secret_hash(answer.boot_token))
    assert (None if token is None else token.needs_approval) is needs_approval
    assert token is None or token.room_id == "lab"


def test_an_unknown_machine_without_a_room_follows_the_daemons_rule(store: Store) -> None:
    desk = Desk(store, UnknownMachines.ASK)
    assert desk.decide(BootReport("52:54:00:00:00:99")).reason is BootReason.UNKNOWN_MACHINE
    desk.store.rooms.change("lab", unknown_machines="off")
    assert desk.decide(BootReport("52:54:00:00:00:99", room_id="lab")).action is BootAction.DISK


def test_a_machine_that_registered_by_booting_keeps_waiting_after_a_restart(desk: Desk) -> None:
    waiting = dataclasses.replace(desk.pc07, enrolment=EnrolmentState.WAITING)
    subject = BootSubject(waiting, True, room("lab"))
    assert decide_boot(REPORT, subject, None, UnknownMachines.ASK).reason is BootReason.APPROVAL
    assert decide_boot(REPORT, subject, None, UnknownMachines.OFF).reason is BootReason.NOTHING_PLANNED
    enrolled_before = dataclasses.replace(waiting, enrolled_at=datetime.now(UTC))
    subject = BootSubject(enrolled_before, True, room("lab"))
    assert decide_boot(REPORT, subject, None, UnknownMachines.ASK).reason is BootReason.NOTHING_PLANNED


def test_a_machine_recognised_by_text_alone_needs_approval(desk: Desk) -> None:
    """Every program on the network can send the serial number of another machine."""
    desk.add_cast()
    cast = desk.registry.unfinished["00000001"]
    decision = decide_boot(REPORT, BootSubject(desk.pc07, False, room("lab")), cast, UnknownMachines.AUTO)
    assert decision == Decision(
        BootReason.CAST, "cast 00000001 of windows waits for pc07", needs_approval=True
    )


def test_a_revoked_machine_gets_no_token(desk: Desk) -> None:
    desk.add_cast()
    desk.store.enrolments.revoke(desk.pc07.machine_id, audit=AuditNote("anna"))
    answer = desk.decide()
    assert (answer.action, answer.reason, answer.boot_token) == (BootAction.DISK, BootReason.REVOKED, "")
    assert not answer.menu_offered


def test_a_token_of_one_room_boots_no_machine_of_another(desk: Desk) -> None:
    desk.add_cast()
    desk.store.rooms.add(room("attic"))
    answer = desk.decide(room_id="attic")
    assert (answer.action, answer.reason) == (BootAction.DISK, BootReason.OTHER_ROOM)
    assert (answer.machine, answer.machine_id) == ("", None)
    unchanged = desk.store.machines.get(desk.pc07.machine_id)
    assert unchanged is not None
    assert unchanged.booted_at is None
    assert desk.decide(room_id="lab").action is BootAction.LIVE
    with pytest.raises(RequestRefusedError, match="is for room 'attic'"):
        desk.decide(dataclasses.replace(REPORT, room_id="lab"), room_id="attic")
    with pytest.raises(RequestRefusedError, match="no room 'cellar'"):
        desk.decide(BootReport("52:54:00:00:00:99", room_id="cellar"))


def test_too_many_unused_tokens_send_machines_to_their_disks(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who invents addresses fills neither the database nor the audit log."""
    monkeypatch.setattr(boots_module, "TOKENS_UNUSED_MAX", 1)
    desk.add_cast()
    assert desk.decide().action is BootAction.LIVE
    answer = desk.decide()
    assert (answer.action, answer.reason, answer.boot_token) == (BootAction.DISK, BootReason.TOO_MANY, "")


def test_without_the_database_the_boot_service_decides(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(_report: BootReport) -> BootSubject:
        raise DatabaseUnavailableError("no answer")

    monkeypatch.setattr(desk.store.boots, "subject", unavailable)
    with pytest.raises(DatabaseUnavailableError):
        desk.decide()


def test_a_machine_to_capture_boots_the_live_system(desk: Desk) -> None:
    """Its disk can't be captured while its own system runs from it."""
    plan = CapturePlan(desk.pc07.machine_id, "lab", "auto", 1 << 18, 3, every_byte=False)
    planned = asyncio.run(desk.captures.create(plan, desk.pc07, Actor("anna")))
    assert desk.decide().reason is BootReason.CAPTURE
    asyncio.run(desk.captures.cancel(planned.capture_id, Actor("anna")))
    assert desk.decide().reason is not BootReason.CAPTURE
