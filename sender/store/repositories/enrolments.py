"""Enrolment of machines: claims, approvals, secrets and revocation, each with its audit entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.database.errors import ConflictError
from sender.store.machines.claims import (
    CLAIM_AUDIT_INTERVAL,
    HOLDER_SILENT,
    Claim,
    ClaimDecision,
    ClaimedMachine,
    ClaimResult,
    decide_claim,
    new_approval_code,
    new_machine_secret,
    secret_hash,
)
from sender.store.machines.identity import chunks, find_machine, identity_key
from sender.store.machines.machine_report import fingerprint_of, valid_macs
from sender.store.records.boots import BootToken
from sender.store.records.machines import EnrolmentMode, EnrolmentState, Machine
from sender.store.repositories.audit import Audit, AuditedRepository, AuditNote
from sender.store.repositories.boots import Boots
from sender.store.repositories.machines import Machines
from sender.store.repositories.transactions import Database, reading, writing, writing_again

_MACHINE = tables.machines.c
_NO_CLAIM: Final[dict[str, Any]] = {
    "approval_code": "",
    "claimant_hash": "",
    "claimed_at": None,
    "claimed_from": "",
}
_AGENT = "an agent at "
"""Actor of the audit entries about claims, followed by the network address."""
_REFUSED_ACTIONS: Final = {
    ClaimDecision.SECOND_CLAIMANT: "machine.second_claim",
    ClaimDecision.BLOCKED: "machine.blocked_claim",
    ClaimDecision.FOREIGN_ROOM: "machine.foreign_claim",
}


class Enrolments(AuditedRepository):
    """Repository of machines' secrets and of claims to be a machine."""

    def __init__(self, database: Database, audit: Audit, machines: Machines, boots: Boots) -> None:
        super().__init__(database, audit)
        self._machines = machines
        self._boots = boots

    @writing_again
    def claim(self, claims: Sequence[Claim]) -> list[ClaimResult]:
        """Decide claims in turn and carry them out; a refused one changes nothing but the note about it."""
        return [self._claim(claim) for claim in claims]

    @writing
    def approve(self, machine_id: str, code: str, *, audit: AuditNote) -> Machine | None:
        """Approve the agent that shows ``code``; it gets the machine's secret at its next check-in.

        Returns:
            The machine; None if it doesn't exist.

        Raises:
            ConflictError: no agent waits for approval as this machine, or it shows another code.
        """
        machine = self._machines.get(machine_id)
        if machine is None:
            return None
        if machine.enrolment is EnrolmentState.APPROVED:
            return machine
        if machine.enrolment is not EnrolmentState.WAITING:
            raise ConflictError(
                f"no agent waits for approval as {machine.name}: start the agent, or see its enrolment with "
                "'diskcast machines show'"
            )
        if machine.approval_code != code.strip().upper():
            raise ConflictError(
                f"the agent that waits as {machine.name} shows another code: compare the code on its screen, and "
                "revoke the machine if another one shows a code"
            )
        self._set(machine_id, enrolment=EnrolmentState.APPROVED, approval_code="", enrolled_by=audit.actor)
        detail = {"name": machine.name, "address": machine.claimed_from}
        self._audit.note(audit, "machine.approve", _subject(machine_id), detail)
        return self._machines.get(machine_id)

    @writing
    def revoke(self, machine_id: str, *, audit: AuditNote) -> Machine | None:
        """Delete a machine's secret and refuse further claims; return None if it doesn't exist."""
        machine = self._machines.get(machine_id)
        if machine is None:
            return None
        if machine.enrolment is not EnrolmentState.BLOCKED:
            self._set(
                machine_id, enrolment=EnrolmentState.BLOCKED, secret_hash="", holder_hash="", **_NO_CLAIM
            )
            detail = {"name": machine.name, "before": machine.enrolment.value}
            self._audit.note(audit, "machine.revoke", _subject(machine_id), detail)
        return self._machines.get(machine_id)

    @writing
    def readmit(self, machine_id: str, *, audit: AuditNote) -> Machine | None:
        """Let a revoked machine enrol again; return None if it doesn't exist."""
        machine = self._machines.get(machine_id)
        if machine is not None and machine.enrolment is EnrolmentState.BLOCKED:
            self._set(machine_id, enrolment=EnrolmentState.NEW, **_NO_CLAIM)
            self._audit.note(audit, "machine.readmit", _subject(machine_id), {"name": machine.name})
        return self._machines.get(machine_id)

    @writing
    def release(self, machine_id: str) -> None:
        """Let the machine enrol again at once, since its agent exits: it counts as silent for long enough."""
        silent_since = self._now() - HOLDER_SILENT
        query = sa.update(tables.machines).where(
            _MACHINE.machine_id == machine_id, _MACHINE.last_seen_at > silent_since
        )
        self._connection.execute(query.values(last_seen_at=silent_since))

    @reading
    def machine_of(self, hashed: str) -> Machine | None:
        """Return the machine whose secret has this hash, or None."""
        query = sa.select(_MACHINE.machine_id).where(_MACHINE.secret_hash == hashed)
        machine_id = self._connection.execute(query).scalar() if hashed else None
        return None if machine_id is None else self._machines.get(machine_id)

    @reading
    def hashes(self, machine_ids: Iterable[str]) -> dict[str, str]:
        """Return the hashes of the secrets of the existing ones of these machines; empty without a secret."""
        found: dict[str, str] = {}
        for chunk in chunks(sorted(machine_ids)):
            query = sa.select(_MACHINE.machine_id, _MACHINE.secret_hash)
            rows = self._connection.execute(query.where(_MACHINE.machine_id.in_(chunk)))
            found |= {row.machine_id: row.secret_hash for row in rows}
        return found

    @reading
    def blocked_of(self, machine_ids: Collection[str]) -> set[str]:
        """Return those of these machines that are revoked or removed."""
        blocked = set(machine_ids)
        for chunk in chunks(sorted(machine_ids)):
            query = sa.select(_MACHINE.machine_id).where(
                _MACHINE.machine_id.in_(chunk), _MACHINE.enrolment != EnrolmentState.BLOCKED
            )
            blocked -= set(self._connection.execute(query).scalars())
        return blocked

    @reading
    def needing_attention(self, limit: int) -> list[Machine]:
        """Return machines with a claim that an operator should look at, the latest first."""
        query = sa.select(_MACHINE.machine_id).where(_MACHINE.claimed_at.is_not(None))
        ids = self._connection.execute(query.order_by(_MACHINE.claimed_at.desc()).limit(limit)).scalars()
        return self._machines.get_many(list(ids))

    # -- a claim ----------------------------------------------------------------------------------------------

    def _claim(self, claim: Claim) -> ClaimResult:
        if claim.boot_hash:
            return self._claim_of_boot(claim)
        machine_id = find_machine(self._connection, claim.report.fingerprint)
        claimed = None if machine_id is None else self._claimed(machine_id)
        return self._decide(claim, claimed)

    def _claim_of_boot(self, claim: Claim) -> ClaimResult:
        """Decide a claim with a boot token: it is for the machine that booted, and takes no other one's addresses."""
        report, macs = claim.report, valid_macs(claim.report.macs)
        token = self._boots.bind(claim.boot_hash, macs, claim.run_hash, report.address)
        if token is None:
            return ClaimResult(ClaimDecision.TOKEN_SPENT, None)
        if token.mac not in macs:
            return self._refuse_foreign(claim, token)
        macs = tuple(dict.fromkeys((token.mac, *macs)))
        fingerprint = fingerprint_of(macs, report.serial, report.asset_tag)
        found = find_machine(self._connection, fingerprint)
        machine = self._machines.get(token.machine_id or found or "")
        if token.machine_id is not None and (
            machine is None
            or found not in (None, machine.machine_id)
            or _differ(identity_key(machine.serial), fingerprint.serial_key)
        ):
            return self._refuse_foreign(claim, token)
        if machine is None:
            return self._decide(claim, None, token)
        report = dataclasses.replace(
            report, machine_id=machine.machine_id, macs=self._free_macs(macs, machine.machine_id)
        )
        if token.mac not in machine.macs:
            # It is known by its serial number or UUID only, which any machine on the network can claim.
            token = dataclasses.replace(token, needs_approval=token.needs_approval or bool(machine.macs))
        return self._decide(
            dataclasses.replace(claim, report=report), self._claimed(machine.machine_id), token
        )

    def _free_macs(self, macs: Sequence[str], machine_id: str) -> tuple[str, ...]:
        """Return those of these addresses that no other machine has."""
        owned = tables.machine_macs.c
        query = sa.select(owned.mac).where(owned.mac.in_(macs), owned.machine_id != machine_id)
        taken = set(self._connection.execute(query).scalars())
        return tuple(mac for mac in macs if mac not in taken)

    def _refuse_foreign(self, claim: Claim, token: BootToken) -> ClaimResult:
        self._boots.note_misuse(token.token_hash, "boot.foreign_claim", claim.report.address)
        return ClaimResult(ClaimDecision.FOREIGN_MACHINE, None)

    def _decide(
        self, claim: Claim, claimed: ClaimedMachine | None, token: BootToken | None = None
    ) -> ClaimResult:
        room_id = claim.room_id if claimed is None else claimed.machine.room_id or claim.room_id
        room = self._room_mode(room_id)
        if claim.room_id is not None and self._room_mode(claim.room_id) is None:
            decision = ClaimDecision.FOREIGN_ROOM  # the room of the token was removed
        else:
            mode = EnrolmentMode(room or claim.mode)
            if token is not None and token.needs_approval:
                mode = EnrolmentMode.APPROVE
            booted_at = None if token is None else token.issued_at
            decision = decide_claim(claim, claimed, mode, self._now(), booted_at=booted_at)
        match decision:
            case ClaimDecision.GRANTED:
                return self._grant(claim, claimed)
            case ClaimDecision.WAITING:
                return self._wait(claim, claimed)
        return self._refuse(claim, claimed, decision)

    def _claimed(self, machine_id: str) -> ClaimedMachine:
        query = sa.select(_MACHINE.secret_hash, _MACHINE.holder_hash, _MACHINE.claimant_hash)
        query = query.where(_MACHINE.machine_id == machine_id)
        if self._database.is_postgresql:
            query = query.with_for_update(key_share=True)
        row = self._connection.execute(query).one()
        machine = self._machines.get(machine_id)
        assert machine is not None
        return ClaimedMachine(machine, bool(row.secret_hash), row.holder_hash, row.claimant_hash)

    def _room_mode(self, room_id: str | None) -> str | None:
        """Return a room's own rule, empty for none; None if there is no such room."""
        room = tables.rooms.c
        query = sa.select(room.enrolment).where(room.room_id == room_id)
        return None if room_id is None else self._connection.execute(query).scalar()

    def _recorded(self, claim: Claim) -> Machine:
        """Record the machine of an admitted claim, or of one to an unknown machine."""
        [machine] = self._machines.record([claim.report])
        assert machine is not None
        return machine

    def _grant(self, claim: Claim, claimed: ClaimedMachine | None) -> ClaimResult:
        machine = self._recorded(claim)
        approved_by = ""
        if claimed is not None and claimed.machine.enrolment is EnrolmentState.APPROVED:
            approved_by = claimed.machine.enrolled_by
        enrolled_by = f"{claim.token_name}, approved by {approved_by}" if approved_by else claim.token_name
        secret = new_machine_secret()
        self._set(
            machine.machine_id,
            enrolment=EnrolmentState.ENROLLED,
            secret_hash=secret_hash(secret),
            holder_hash=claim.run_hash,
            enrolled_at=self._now(),
            enrolled_by=enrolled_by,
            **_NO_CLAIM,
            **({"next_boot": ""} if claim.boot_hash else {}),
        )
        rotated = claimed is not None and claimed.has_secret
        self._note(
            claim,
            machine,
            "machine.rotate_secret" if rotated else "machine.enrol",
            approved_by=approved_by,
            new=claimed is None,
        )
        enrolled = self._machines.get(machine.machine_id)
        known = None if claimed is None else claimed.machine
        for_cast = known is not None and known.enrolled_at is not None and not known.next_boot
        return ClaimResult(ClaimDecision.GRANTED, enrolled, secret, booted_for_cast=for_cast)

    def _wait(self, claim: Claim, claimed: ClaimedMachine | None) -> ClaimResult:
        """Let the agent wait. An unapproved agent changes nothing else of a machine that is known."""
        machine = self._recorded(claim) if claimed is None else claimed.machine
        waits_already = (
            claimed is not None
            and claimed.claimant_hash == claim.run_hash
            and machine.enrolment is EnrolmentState.WAITING
        )
        if waits_already:
            self._set(machine.machine_id, claimed_at=self._now(), claimed_from=claim.report.address)
        else:
            self._set(
                machine.machine_id,
                enrolment=EnrolmentState.WAITING,
                approval_code=new_approval_code(),
                claimant_hash=claim.run_hash,
                claimed_at=self._now(),
                claimed_from=claim.report.address,
            )
            self._note(claim, machine, "machine.await_approval", new=claimed is None)
        return ClaimResult(ClaimDecision.WAITING, self._machines.get(machine.machine_id))

    def _refuse(self, claim: Claim, claimed: ClaimedMachine | None, decision: ClaimDecision) -> ClaimResult:
        if claimed is None:
            return ClaimResult(decision, None)
        machine, action, now = claimed.machine, _REFUSED_ACTIONS[decision], self._now()
        entry = tables.audit.c
        noted_at = self._connection.execute(
            sa.select(sa.func.max(entry.at)).where(
                entry.subject == _subject(machine.machine_id), entry.action == action
            )
        ).scalar()
        if noted_at is None or now - noted_at >= CLAIM_AUDIT_INTERVAL:
            self._note(claim, machine, action)
            if machine.enrolment not in (EnrolmentState.WAITING, EnrolmentState.APPROVED):
                self._set(machine.machine_id, claimed_at=now, claimed_from=claim.report.address)
        return ClaimResult(decision, self._machines.get(machine.machine_id))

    def _note(self, claim: Claim, machine: Machine, action: str, **detail: object) -> None:
        full_detail = {"name": machine.name, "token": claim.token_name, **detail}
        note = AuditNote(_AGENT + claim.report.address)
        self._audit.note(note, action, _subject(machine.machine_id), full_detail)

    def _set(self, machine_id: str, **values: object) -> None:
        query = sa.update(tables.machines).where(_MACHINE.machine_id == machine_id)
        self._connection.execute(query.values(**values))


def _differ(one: str, other: str) -> bool:
    """Return whether both keys are known and differ."""
    return bool(one and other) and one != other


def _subject(machine_id: str) -> str:
    return f"machine {machine_id}"
