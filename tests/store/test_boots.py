"""Boot tokens in the database: one machine, one run of its agent, a few minutes.

Lost if these fail: somebody who reads a boot script from the network enrols as any machine, again and again.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from sender.store.machines.claims import (
    CLAIM_AUDIT_INTERVAL,
    Claim,
    ClaimDecision,
    ClaimResult,
    LastHeard,
    secret_hash,
)
from sender.store.machines.machine_report import MachineReport
from sender.store.records.boots import BootAction, BootFirmware, BootReport, BootToken
from sender.store.records.machines import EnrolmentMode, EnrolmentState, Machine
from sender.store.repositories import boots as module
from sender.store.repositories.audit import AuditNote
from sender.store.repositories.boots import (
    BOOTING_FOR,
    TOKEN_LIFETIME,
    TOKENS_PER_MAC_MAX,
    USED_KEPT,
    DecidedBoot,
    new_boot_token,
)
from sender.store.store import Store
from tests.store.samples import Clock, machine, room

ANNA = AuditNote("anna", "", "r1")
MAC = "52:54:00:00:00:07"
UUID = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
PC7 = MachineReport("pc07", (MAC,), "SN7", "", "10.0.0.7", "1.0", {"memory": "8 GiB"})


def issue(store: Store, known: Machine | None = None, *, mac: str = MAC, **fields: Any) -> str:
    """Issue a boot token for a machine; return its secret."""
    secret, now = new_boot_token(), store.now()
    token = BootToken(
        token_hash=secret_hash(secret),
        mac=mac,
        machine_id=None if known is None else known.machine_id,
        room_id=None,
        needs_approval=False,
        issued_at=now,
        expires_at=now + TOKEN_LIFETIME,
        issued_by="boot server",
    )
    token = dataclasses.replace(token, **fields)
    report = BootReport(mac, UUID, firmware=BootFirmware.UEFI)
    [issued] = store.boots.record(
        [DecidedBoot(report, token.machine_id, BootAction.LIVE, "a cast waits", token, ANNA)]
    )
    return secret if issued else ""


def claim(
    store: Store,
    secret: str,
    run: str = "first",
    *,
    report: MachineReport = PC7,
    room_id: str | None = None,
    mode: EnrolmentMode = EnrolmentMode.TOKEN,
    active: bool = False,
) -> ClaimResult:
    """Claim to be a machine with a boot token."""

    def heard(_id: str) -> LastHeard | None:
        return LastHeard(store.now(), active=True) if active else None

    report = dataclasses.replace(report, room_id=room_id)
    [result] = store.enrolments.claim(
        [Claim(report, secret_hash(run), "boot by boot server", room_id, mode, heard, secret_hash(secret))]
    )
    return result


def known_machine(store: Store, **fields: Any) -> Machine:
    return store.machines.add(machine("pc07", **({"macs": (MAC,), "serial": "SN7"} | fields)))


def actions(store: Store) -> list[str]:
    entries, _ = store.audit.list()
    return [entry.action for entry in reversed(entries)]


def test_a_boot_token_enrols_its_machine_for_one_run_of_an_agent(store: Store) -> None:
    known = known_machine(store)
    secret = issue(store, known)
    assert secret not in repr(store.boots.find(secret_hash(secret)))
    granted = claim(store, secret)
    assert granted.decision is ClaimDecision.GRANTED
    assert granted.machine is not None
    assert granted.machine.machine_id == known.machine_id
    assert granted.machine.inventory == {"memory": "8 GiB"}
    again = claim(store, secret)
    assert again.decision is ClaimDecision.GRANTED, "the answer was lost"
    assert claim(store, secret, "second").decision is ClaimDecision.TOKEN_SPENT
    assert claim(store, secret, "third").decision is ClaimDecision.TOKEN_SPENT
    assert store.enrolments.machine_of(secret_hash(again.secret)) is not None
    assert actions(store).count("boot.replayed") == 1, "an agent that retries doesn't fill the log"
    assert actions(store).count("boot.issued") == 1


def test_replays_are_recognised_for_a_day(store: Store, clock: Clock) -> None:
    secret = issue(store, known_machine(store))
    claim(store, secret)
    clock.time += USED_KEPT - timedelta(minutes=1)
    store.boots.expire()
    assert store.boots.find(secret_hash(secret)) is not None
    assert claim(store, secret, "second").decision is ClaimDecision.TOKEN_SPENT
    assert actions(store)[-1] == "boot.replayed"
    clock.time += timedelta(minutes=2)
    store.boots.expire()
    assert store.boots.find(secret_hash(secret)) is None


def test_an_unused_token_expires(store: Store, clock: Clock) -> None:
    secret = issue(store, known_machine(store))
    clock.time += TOKEN_LIFETIME
    assert store.boots.find(secret_hash(secret)) is None
    assert claim(store, secret).decision is ClaimDecision.TOKEN_SPENT
    store.boots.expire()
    assert store.boots.find(secret_hash("dcb_unknown")) is None


@pytest.mark.parametrize("known", [True, False], ids=["known machine", "unknown machine"])
def test_the_token_of_one_address_enrols_no_other(store: Store, *, known: bool) -> None:
    other = store.machines.add(machine("pc08", macs=("52:54:00:00:00:08",), serial="SN8"))
    secret = issue(store, known_machine(store) if known else None)
    stolen = dataclasses.replace(PC7, macs=("52:54:00:00:00:08",), serial="SN8")
    assert claim(store, secret, report=stolen).decision is ClaimDecision.FOREIGN_MACHINE
    assert actions(store)[-1] == "boot.foreign_claim"
    unchanged = store.machines.get(other.machine_id)
    assert unchanged is not None
    assert unchanged.enrolment is EnrolmentState.NEW
    assert claim(store, secret).decision is ClaimDecision.GRANTED, "it isn't used up by the attack"


def test_a_machine_takes_no_address_or_serial_number_of_another(store: Store) -> None:
    other = store.machines.add(machine("pc08", macs=("52:54:00:00:00:08",), serial="SN8"))
    secret = issue(store, known_machine(store))
    greedy = dataclasses.replace(PC7, macs=("52:54:00:00:00:08", MAC))
    granted = claim(store, secret, report=greedy)
    assert granted.machine is not None
    assert granted.machine.macs == (MAC,)
    kept = store.machines.get(other.machine_id)
    assert kept is not None
    assert kept.macs == ("52:54:00:00:00:08",)
    unknown = issue(store, mac="52:54:00:00:00:09")
    posing = dataclasses.replace(PC7, macs=("52:54:00:00:00:09",), serial="SN8")
    waits = claim(store, unknown, report=posing)
    assert waits.decision is ClaimDecision.WAITING, "a serial number alone needs an operator's approval"
    assert (
        claim(store, issue(store, other, mac="52:54:00:00:00:08"), "x").decision
        is ClaimDecision.FOREIGN_MACHINE
    )


def test_a_boot_replaces_the_secret_of_an_agent_that_was_cut_off(store: Store) -> None:
    """Otherwise a machine that lost its power waits for half a minute, and a room starts without it."""
    known = known_machine(store)
    first = claim(store, issue(store, known))
    second_boot = issue(store, known)
    second = claim(store, second_boot, "second", active=True)
    assert second.decision is ClaimDecision.GRANTED
    assert store.enrolments.machine_of(secret_hash(first.secret)) is None
    assert "machine.rotate_secret" in actions(store)


def test_the_first_use_of_a_token_ends_the_other_ones_of_its_machine(store: Store) -> None:
    """Otherwise somebody who collects unused tokens throws machines out of their casts."""
    known = known_machine(store)
    collected = issue(store, known)
    holder = claim(store, issue(store, known), "holder")
    assert store.boots.find(secret_hash(collected)) is None
    assert claim(store, collected, "thief", active=True).decision is ClaimDecision.TOKEN_SPENT
    assert store.enrolments.machine_of(secret_hash(holder.secret)) is not None


def test_the_agent_of_an_earlier_boot_replaces_no_active_one(store: Store) -> None:
    """Otherwise two agents of one machine throw each other out again and again."""
    known = known_machine(store)
    first_boot = issue(store, known)
    claim(store, first_boot)
    holder = claim(store, issue(store, known), "second", active=True)
    assert claim(store, first_boot, active=True).decision is ClaimDecision.SECOND_CLAIMANT
    assert store.enrolments.machine_of(secret_hash(holder.secret)) is not None


def test_a_booting_machine_waits_for_approval_where_the_room_demands_it(store: Store) -> None:
    known = known_machine(store)
    secret = issue(store, known)
    waits = claim(store, secret, mode=EnrolmentMode.APPROVE)
    assert waits.decision is ClaimDecision.WAITING
    assert waits.machine is not None
    store.enrolments.approve(known.machine_id, waits.machine.approval_code, audit=ANNA)
    granted = claim(store, secret, mode=EnrolmentMode.APPROVE)
    assert granted.decision is ClaimDecision.GRANTED
    assert granted.machine is not None
    assert granted.machine.enrolled_by == "boot by boot server, approved by anna"


def test_an_approval_may_come_after_the_token_would_have_expired(store: Store, clock: Clock) -> None:
    known = known_machine(store)
    secret = issue(store, known, needs_approval=True)
    waits = claim(store, secret)
    assert waits.decision is ClaimDecision.WAITING, "the room's own rule doesn't ask for it"
    assert waits.machine is not None
    clock.time += TOKEN_LIFETIME * 3
    store.boots.expire()
    assert claim(store, secret).decision is ClaimDecision.WAITING
    store.enrolments.approve(known.machine_id, waits.machine.approval_code, audit=ANNA)
    assert claim(store, secret).decision is ClaimDecision.GRANTED


def test_a_second_boot_takes_the_place_of_one_that_waits_for_approval(store: Store) -> None:
    known = known_machine(store)
    first = claim(store, issue(store, known, needs_approval=True))
    second = claim(store, issue(store, known, needs_approval=True), "second")
    assert second.decision is ClaimDecision.WAITING
    assert first.machine is not None
    assert second.machine is not None
    assert second.machine.approval_code != first.machine.approval_code


def test_an_unknown_machine_enters_the_room_of_the_boot_service(store: Store) -> None:
    store.rooms.add(room())
    secret = issue(store, room_id="lab")
    granted = claim(store, secret, room_id="lab")
    assert granted.decision is ClaimDecision.GRANTED
    assert granted.machine is not None
    assert (granted.machine.room_id, granted.machine.macs) == ("lab", (MAC,))
    gone = issue(store, mac="52:54:00:00:00:09", room_id="cellar")
    other = dataclasses.replace(PC7, macs=("52:54:00:00:00:09",), serial="")
    assert claim(store, gone, report=other, room_id="cellar").decision is ClaimDecision.FOREIGN_ROOM


def test_a_removed_machine_isnt_enrolled_again_by_its_token(store: Store) -> None:
    known = known_machine(store)
    secret = issue(store, known)
    store.machines.remove(known.machine_id)
    assert claim(store, secret).decision is ClaimDecision.FOREIGN_MACHINE


def test_a_machine_is_found_by_address_then_serial_then_uuid(store: Store) -> None:
    known = known_machine(store)
    by_mac = store.boots.subject(BootReport(MAC))
    assert by_mac.machine is not None
    assert by_mac.by_mac
    issue(store, known)  # records the UUID
    for report in (
        BootReport("52:54:00:00:00:99", serial="SN7"),
        BootReport("52:54:00:00:00:99", UUID.upper()),
    ):
        subject = store.boots.subject(report)
        assert subject.machine is not None
        assert subject.machine.machine_id == known.machine_id
        assert not subject.by_mac
    for unusable in ("ffffffff-ffff-ffff-ffff-ffffffffffff", "03000200-0400-0500-0006-000700080009", "x", ""):
        assert store.boots.subject(BootReport("52:54:00:00:00:99", unusable)).machine is None


def test_the_last_boot_of_a_machine_is_recorded(store: Store) -> None:
    known = known_machine(store)
    report = BootReport(MAC, UUID, firmware=BootFirmware.BIOS)
    boot = DecidedBoot(report, known.machine_id, BootAction.DISK, "nothing is planned for pc07", None, ANNA)
    assert store.boots.record([boot]) == [True]
    recorded = store.machines.get(known.machine_id)
    assert recorded is not None
    assert recorded.booted_at is not None
    assert (recorded.boot_action, recorded.boot_text) == ("disk", "nothing is planned for pc07")
    assert (recorded.boot_firmware, recorded.uuid) == ("bios", UUID)
    assert "boot.issued" not in actions(store)


def test_an_enrolment_fulfils_the_wish_for_the_live_system(store: Store) -> None:
    known = known_machine(store)
    store.machines.change(known.machine_id, next_boot="live")
    granted = claim(store, issue(store, known))
    assert granted.machine is not None
    assert granted.machine.next_boot == ""


def test_the_number_of_unused_tokens_is_limited(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_machine(store)
    secrets = [issue(store, known) for _ in range(TOKENS_PER_MAC_MAX + 1)]
    valid = [store.boots.find(secret_hash(secret)) is not None for secret in secrets]
    assert valid == [False] + [True] * TOKENS_PER_MAC_MAX, "the oldest is dropped"
    assert actions(store).count("boot.issued") == 1
    monkeypatch.setattr(module, "TOKENS_UNUSED_MAX", TOKENS_PER_MAC_MAX)
    assert issue(store, mac="52:54:00:00:00:09") == ""


def test_repeated_boots_are_audited_once_a_minute(store: Store, clock: Clock) -> None:
    known = known_machine(store)
    for _ in range(3):
        issue(store, known)
    clock.time += CLAIM_AUDIT_INTERVAL
    issue(store, known)
    assert actions(store).count("boot.issued") == 2


def test_a_machine_counts_as_booting_until_it_checks_in(store: Store, clock: Clock) -> None:
    known = known_machine(store)
    secret = issue(store, known)
    issue(store, mac="52:54:00:00:00:09", room_id="lab")
    issue(store, mac="52:54:00:00:00:0a", room_id="lab", needs_approval=True)
    store.rooms.add(room("attic"))
    store.machines.change(known.machine_id, room_id="attic")
    booting = {item.mac: (item.machine_id, item.room_id) for item in store.boots.booting()}
    assert booting == {MAC: (known.machine_id, "attic"), "52:54:00:00:00:09": (None, "lab")}
    claim(store, secret)
    assert [item.mac for item in store.boots.booting()] == ["52:54:00:00:00:09"]
    clock.time += BOOTING_FOR
    assert store.boots.booting() == []
