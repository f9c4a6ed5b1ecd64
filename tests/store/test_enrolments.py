"""Enrolment in the database: only one agent holds a machine's secret, and every decision is in the audit log.

Lost if these fail: somebody with a token for one room receives casts and posts results as any machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from sender.store.database.errors import ConflictError
from sender.store.machines.claims import (
    CLAIM_AUDIT_INTERVAL,
    HOLDER_SILENT,
    Claim,
    ClaimDecision,
    ClaimResult,
    LastHeard,
    secret_hash,
)
from sender.store.machines.machine_report import MachineReport
from sender.store.records.machines import EnrolmentMode, EnrolmentState
from sender.store.repositories.audit import AuditNote
from sender.store.store import Store
from tests.store.samples import START, Clock, add_cast, machine, room

ANNA = AuditNote("anna", "", "r1")
PC7 = MachineReport("pc07", ("52:54:00:00:00:07",), "SN7", "", "10.0.0.7", "1.0", {})


def claim(
    store: Store,
    run: str = "first",
    *,
    report: MachineReport = PC7,
    room_id: str | None = None,
    mode: EnrolmentMode = EnrolmentMode.TOKEN,
    last_heard: Callable[[str], LastHeard | None] = lambda _id: None,
) -> ClaimResult:
    [result] = store.enrolments.claim(
        [
            Claim(
                dataclasses.replace(report, room_id=room_id),
                secret_hash(run),
                "lab-agents",
                room_id,
                mode,
                last_heard,
            )
        ]
    )
    return result


def actions(store: Store) -> list[str]:
    entries, _ = store.audit.list()
    return [entry.action for entry in reversed(entries)]


def granted_id(store: Store, **options: Any) -> str:
    result = claim(store, **options)
    assert result.decision is ClaimDecision.GRANTED
    assert result.machine is not None
    return result.machine.machine_id


def test_the_first_claim_gets_a_secret_of_which_only_the_hash_is_kept(store: Store) -> None:
    store.rooms.add(room())
    result = claim(store, room_id="lab")
    assert result.machine is not None
    assert (result.machine.name, result.machine.room_id) == ("pc07", "lab")
    assert result.machine.enrolment is EnrolmentState.ENROLLED
    found = store.enrolments.machine_of(secret_hash(result.secret))
    assert found is not None
    assert found.machine_id == result.machine.machine_id
    assert result.secret not in repr(result)
    assert store.enrolments.machine_of(secret_hash("dcm_guess")) is None
    assert store.enrolments.machine_of("") is None, "machines without a secret aren't found by an empty one"
    assert "machine.enrol" in actions(store)


def test_a_second_agent_is_refused_while_the_first_one_is_active(store: Store, clock: Clock) -> None:
    first = claim(store)
    second = claim(store, "second", report=dataclasses.replace(PC7, name="evil", address="10.0.0.66"))
    assert second.decision is ClaimDecision.SECOND_CLAIMANT
    assert second.secret == ""
    assert store.enrolments.machine_of(secret_hash(first.secret)) is not None
    recorded = store.machines.get(first.machine.machine_id) if first.machine else None
    assert recorded is not None
    assert (recorded.name, recorded.address) == ("pc07", "10.0.0.7"), "a refused claim changes nothing"
    assert recorded.claimed_from == "10.0.0.66"
    assert [item.machine_id for item in store.enrolments.needing_attention(10)] == [recorded.machine_id]
    clock.time += HOLDER_SILENT
    active = claim(store, "second", last_heard=lambda _id: LastHeard(START, active=True))
    assert active.decision is ClaimDecision.SECOND_CLAIMANT, "connected to a daemon, though its row is old"


def test_the_same_run_gets_a_secret_again_when_the_answer_was_lost(store: Store) -> None:
    lost = claim(store)
    again = claim(store)
    assert again.decision is ClaimDecision.GRANTED
    assert store.enrolments.machine_of(secret_hash(lost.secret)) is None
    assert store.enrolments.machine_of(secret_hash(again.secret)) is not None


def test_a_silent_machine_is_taken_over_with_a_new_secret(store: Store, clock: Clock) -> None:
    first = claim(store)
    clock.time += HOLDER_SILENT
    second = claim(store, "second")
    assert second.decision is ClaimDecision.GRANTED
    assert store.enrolments.machine_of(secret_hash(first.secret)) is None
    assert actions(store)[-1] == "machine.rotate_secret"


def test_the_daemon_of_a_machine_knows_sooner_that_it_is_silent(store: Store, clock: Clock) -> None:
    """A netbooted machine that lost its power rejoins its cast as soon as it is up again."""
    granted_id(store)
    overdue = claim(store, "second", last_heard=lambda _id: LastHeard(clock.time, active=False))
    assert overdue.decision is ClaimDecision.GRANTED
    elsewhere = claim(store, "third", last_heard=lambda _id: LastHeard(START, active=False))
    assert elsewhere.decision is ClaimDecision.SECOND_CLAIMANT, "it has checked in with another daemon since"


def test_an_agent_that_exits_lets_its_machine_enrol_at_once(store: Store) -> None:
    machine_id = granted_id(store)
    store.enrolments.release(machine_id)
    assert claim(store, "after the reboot").decision is ClaimDecision.GRANTED


def test_a_token_of_one_room_enrols_no_machine_of_another(store: Store) -> None:
    store.rooms.add(room())
    store.rooms.add(room("attic"))
    store.machines.add(machine("pc07", macs=PC7.macs, room_id="attic"))
    assert claim(store, room_id="lab").decision is ClaimDecision.FOREIGN_ROOM
    assert claim(store, room_id="cellar").decision is ClaimDecision.FOREIGN_ROOM, "its room was removed"
    assert claim(store, room_id="attic").decision is ClaimDecision.GRANTED
    assert "machine.foreign_claim" in actions(store)


def test_a_machine_waits_for_approval_by_its_code(store: Store) -> None:
    approve = EnrolmentMode.APPROVE
    waits = claim(store, mode=approve)
    assert waits.decision is ClaimDecision.WAITING
    assert waits.machine is not None
    code, machine_id = waits.machine.approval_code, waits.machine.machine_id
    assert len(code) == 6
    again = claim(store, mode=approve)
    assert again.machine is not None
    assert again.machine.approval_code == code, "the code on the screen stays"
    assert claim(store, "second", mode=approve).decision is ClaimDecision.SECOND_CLAIMANT
    with pytest.raises(ConflictError, match="another code"):
        store.enrolments.approve(machine_id, "AAAAAA", audit=ANNA)
    approved = store.enrolments.approve(machine_id, code.lower(), audit=ANNA)
    assert approved is not None
    assert approved.enrolment is EnrolmentState.APPROVED
    assert claim(store, "second", mode=approve).decision is ClaimDecision.SECOND_CLAIMANT
    granted = claim(store, mode=approve)
    assert granted.decision is ClaimDecision.GRANTED
    assert granted.machine is not None
    assert granted.machine.enrolled_by == "lab-agents, approved by anna"
    assert actions(store) == [
        "machine.await_approval",
        "machine.second_claim",
        "machine.approve",
        "machine.enrol",
    ]


def test_an_unapproved_claim_leaves_the_machine_and_its_secret_alone(store: Store, clock: Clock) -> None:
    """Otherwise one token would lock out every machine that is switched off."""
    first = claim(store)
    assert first.machine is not None
    clock.time += HOLDER_SILENT
    forged = dataclasses.replace(PC7, name="evil", address="10.0.0.66", macs=(*PC7.macs, "52:54:00:00:00:66"))
    assert claim(store, "second", report=forged, mode=EnrolmentMode.APPROVE).decision is ClaimDecision.WAITING
    machine_now = store.enrolments.machine_of(secret_hash(first.secret))
    assert machine_now is not None
    assert (machine_now.name, machine_now.macs) == ("pc07", PC7.macs)
    [back] = store.machines.record([dataclasses.replace(PC7, machine_id=machine_now.machine_id)])
    assert back is not None
    assert (back.enrolment, back.approval_code) == (EnrolmentState.ENROLLED, "")


def test_a_rooms_rule_replaces_the_daemons(store: Store) -> None:
    store.rooms.add(room(enrolment="approve"))
    assert claim(store, room_id="lab").decision is ClaimDecision.WAITING
    store.rooms.change("lab", enrolment="")
    assert claim(
        store, "second", report=dataclasses.replace(PC7, macs=(), serial="SN8"), room_id="lab"
    ).decision is (ClaimDecision.GRANTED)


def test_a_revoked_machine_is_out_until_it_is_readmitted(store: Store, clock: Clock) -> None:
    first = claim(store)
    assert first.machine is not None
    machine_id = first.machine.machine_id
    clock.time += HOLDER_SILENT
    for _ in range(2):  # the second one records nothing
        revoked = store.enrolments.revoke(machine_id, audit=ANNA)
        assert revoked is not None
        assert revoked.enrolment is EnrolmentState.BLOCKED
    assert store.enrolments.machine_of(secret_hash(first.secret)) is None
    assert store.enrolments.blocked_of({machine_id, "m-removed"}) == {machine_id, "m-removed"}
    assert store.enrolments.hashes([machine_id]) == {machine_id: ""}
    assert claim(store).decision is ClaimDecision.BLOCKED
    assert store.enrolments.readmit(machine_id, audit=ANNA) is not None
    assert store.enrolments.blocked_of({machine_id}) == set()
    assert claim(store, "second").decision is ClaimDecision.GRANTED
    assert actions(store).count("machine.revoke") == 1
    assert store.enrolments.revoke("m-unknown", audit=ANNA) is None


def test_a_member_cant_take_the_address_of_another_one(store: Store) -> None:
    """Or it would be found in that machine's place when that one enrols again."""
    victim = granted_id(store)
    other = dataclasses.replace(PC7, name="pc08", macs=("52:54:00:00:00:08",), serial="SN8")
    member = granted_id(store, run="other", report=other)
    greedy = dataclasses.replace(other, machine_id=member, macs=(*other.macs, *PC7.macs), serial="")
    store.machines.record([greedy])
    kept = store.machines.get(victim)
    assert kept is not None
    assert kept.macs == PC7.macs
    found = store.machines.find(PC7.macs, "", "")
    assert found is not None
    assert found.machine_id == victim


def test_refused_claims_are_audited_once_a_minute(store: Store, clock: Clock) -> None:
    granted_id(store)
    for _ in range(5):
        claim(store, "second", last_heard=lambda _id: LastHeard(START, active=True))
    assert actions(store).count("machine.second_claim") == 1
    clock.time += CLAIM_AUDIT_INTERVAL
    claim(store, "second", last_heard=lambda _id: LastHeard(START, active=True))
    assert actions(store).count("machine.second_claim") == 2


def test_a_room_that_is_switched_on_enrols_in_one_transaction(store: Store) -> None:
    reports = [
        dataclasses.replace(PC7, name=f"pc{n}", macs=(f"52:54:00:00:01:{n:02x}",), serial=f"S{n}x")
        for n in range(60)
    ]
    claims = [
        Claim(report, secret_hash(report.name), "t", None, EnrolmentMode.TOKEN, lambda _id: None)
        for report in reports
    ]
    results = store.enrolments.claim(claims)
    assert {result.decision for result in results} == {ClaimDecision.GRANTED}
    assert len({result.secret for result in results}) == 60


def test_every_daemon_gets_the_same_join_key(store: Store) -> None:
    add_cast(store)
    assert store.casts.join_key("00000001", b"a" * 32) == b"a" * 32
    assert store.casts.join_key("00000001", b"b" * 32) == b"a" * 32
    with pytest.raises(ConflictError):
        store.casts.join_key("0000ffff", b"c" * 32)


def test_a_machine_of_the_first_version_enrols_with_a_token_and_keeps_its_row(
    store: Store, clock: Clock
) -> None:
    """The row is as the migration leaves it: everything of enrolment has its default."""
    store.rooms.add(room())
    with store.transaction():
        connection = store.machines._connection
        connection.execute(
            sa.text(
                "INSERT INTO machines (machine_id, name, room_id, serial, serial_key, asset_tag, asset_key, position,"
                " note, address, agent_version, inventory, created_at, last_seen_at) VALUES ('m-old', 'seat 7', 'lab',"
                " 'SN7', 'sn7', '', '', 'row 1', '', '10.0.0.7', '0.1.0', '{}', '2026-01-01T00:00:00.000000Z',"
                " '2026-01-01T00:00:00.000000Z')"
            )
        )
    old = store.machines.get("m-old")
    assert old is not None
    assert old.enrolment is EnrolmentState.NEW
    result = claim(store, room_id="lab")
    assert result.machine is not None
    assert (result.machine.machine_id, result.machine.name) == ("m-old", "seat 7")
    assert result.machine.created_at < clock.time - timedelta(days=1)
