"""Claims: an agent that says which machine it is, with a token for enrolment and without the machine's secret.

::

    claim ──► is its boot token used, or of another machine?       refused
          ──► is the machine revoked, or of another room?          refused
          ──► the run of the agent that holds the secret already?  granted again: its answer was lost
          ──► does another agent hold the secret, and is active?   refused, and shown to operators
          ──► is approval needed?                                  waits, with a code ──► approved ──► granted
          ──► otherwise                                            granted

A netbooted machine forgets its secret when it is switched off, so a claim for a silent machine gets a new secret. With
a boot token the machine needn't be silent: the daemon has decided that it boots, so the older agent is gone.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from sender.store.machines.machine_report import MachineReport
from sender.store.records.machines import EnrolmentMode, EnrolmentState, Machine

SECRET_PREFIX: Final = "dcm_"  # noqa: S105 - a prefix
SECRET_BYTES: Final = 32
"""256 random bits can't be guessed, so a plain SHA-256 protects them."""
HOLDER_SILENT: Final = timedelta(seconds=40)
"""Silence in the database after which a claim takes a machine over: a long poll and the interval in which daemons write
the last check-ins. The daemon with which the machine checks in knows sooner."""
CLAIMANT_SILENT: Final = timedelta(seconds=30)
"""Silence after which another agent may wait for approval in the place of one that has stopped asking."""
CLAIM_AUDIT_INTERVAL: Final = timedelta(seconds=60)
"""Shortest interval between two audit entries about refused claims of one machine, however often an agent retries."""

CODE_CHARACTERS: Final = 6
_CODE_ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
"""Without 0, O, 1, I and L, which people confuse."""


class ClaimDecision(enum.Enum):
    """The answer to a claim."""

    GRANTED = enum.auto()
    WAITING = enum.auto()
    SECOND_CLAIMANT = enum.auto()
    BLOCKED = enum.auto()
    FOREIGN_ROOM = enum.auto()
    TOKEN_SPENT = enum.auto()
    """The boot token has expired, or another run of an agent has used it."""
    FOREIGN_MACHINE = enum.auto()
    """The boot token is of another machine."""


@dataclasses.dataclass(frozen=True, slots=True)
class LastHeard:
    """The last check-in of a machine with this daemon.

    Attributes:
        at: UTC.
        active: its agent waits for an answer, or its next check-in isn't overdue.
    """

    at: datetime
    active: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A claim of an agent.

    Attributes:
        report: the machine, as its agent describes it.
        run_hash: SHA-256 of the random id of this run of the agent, which only the agent and the daemon know.
        token_name: token of the claim.
        room_id: room of the token; None: it is for all rooms.
        mode: the daemon's rule, for machines whose room has none of its own.
        last_heard: returns a machine's last check-in with this daemon, if any; called in a thread of the store.
        boot_hash: hash of the claim's boot token; empty for a token for enrolment.
    """

    report: MachineReport
    run_hash: str
    token_name: str
    room_id: str | None
    mode: EnrolmentMode
    last_heard: Callable[[str], LastHeard | None]
    boot_hash: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class ClaimedMachine:
    """A claimed machine, with the columns that no record holds."""

    machine: Machine
    has_secret: bool
    holder_hash: str
    claimant_hash: str


@dataclasses.dataclass(frozen=True, slots=True)
class ClaimResult:
    """The result of a claim.

    Attributes:
        machine: the claimed machine; None for a refused claim to an unknown one.
        secret: the machine's new secret, if it is granted.
        booted_for_cast: it was enrolled before, and no operator asked for the live system: a cast waited for it.
    """

    decision: ClaimDecision
    machine: Machine | None
    secret: str = dataclasses.field(default="", repr=False)
    booted_for_cast: bool = False


def decide_claim(
    claim: Claim,
    claimed: ClaimedMachine | None,
    mode: EnrolmentMode,
    now: datetime,
    *,
    booted_at: datetime | None = None,
) -> ClaimDecision:
    """Return the answer to a claim.

    Args:
        claim: the claim.
        claimed: the machine with the claimed identifiers; None for an unknown one.
        mode: the rule of its room.
        now: UTC.
        booted_at: time at which the claim's boot token was issued; None without one.
    """
    approval = ClaimDecision.WAITING if mode is EnrolmentMode.APPROVE else ClaimDecision.GRANTED
    if claimed is None:
        return approval
    machine = claimed.machine
    if machine.enrolment is EnrolmentState.BLOCKED:
        return ClaimDecision.BLOCKED
    if claim.room_id is not None and machine.room_id not in (None, claim.room_id):
        return ClaimDecision.FOREIGN_ROOM
    if claimed.has_secret and claimed.holder_hash == claim.run_hash:
        return ClaimDecision.GRANTED
    # An agent that enrolled before this boot doesn't run any more; one that enrolled since may.
    booted = booted_at is not None and (machine.enrolled_at is None or machine.enrolled_at <= booted_at)
    if claimed.has_secret and not booted and _is_active(claim, machine, now):
        return ClaimDecision.SECOND_CLAIMANT
    same_claimant = claimed.claimant_hash == claim.run_hash
    if machine.enrolment is EnrolmentState.APPROVED and same_claimant:
        return ClaimDecision.GRANTED
    if approval is ClaimDecision.WAITING and claimed.claimant_hash and not same_claimant:
        asked_at = machine.claimed_at
        gone = booted_at is not None and asked_at is not None and asked_at <= booted_at
        if asked_at is not None and not gone and now - asked_at < CLAIMANT_SILENT:
            return ClaimDecision.SECOND_CLAIMANT
    return approval


def _is_active(claim: Claim, machine: Machine, now: datetime) -> bool:
    """Return whether the agent that holds the machine's secret is active, with this daemon or another one."""
    heard, seen_at = claim.last_heard(machine.machine_id), machine.last_seen_at
    if heard is not None and (heard.active or seen_at is None or seen_at <= heard.at):
        return heard.active
    return seen_at is not None and now - seen_at < HOLDER_SILENT


def new_machine_secret() -> str:
    """Return a secret for a machine."""
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def new_approval_code() -> str:
    """Return a code by which an operator recognises a machine that waits."""
    return "".join(secrets.choice(_CODE_ALPHABET) for _ in range(CODE_CHARACTERS))


def secret_hash(secret: str) -> str:
    """Return the form in which the database keeps a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()
