"""The desk at which machines enrol: an agent with a token for enrolment asks for its machine's secret."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from protocol.control.check_in import CheckIn
from protocol.errors import DatabaseError
from sender.daemon.machine_access import MachineAccess
from sender.daemon.presence import Presence
from sender.metrics.boot_metrics import BOOT_TOKEN_REFUSALS
from sender.refusals import RequestRefusedError, conflict, forbidden, unauthorised
from sender.store.group_commit import GroupCommit
from sender.store.machines.claims import HOLDER_SILENT, Claim, ClaimDecision, ClaimResult, secret_hash
from sender.store.machines.machine_report import MachineReport
from sender.store.records.machines import EnrolmentMode, EnrolmentState, Machine
from sender.store.records.problems import Problem, ProblemKind
from sender.store.store import Store

_POLL_S: Final = 5.0
_SHOWN_FOR: Final = timedelta(hours=1)
"""Time for which a refused claim needs attention; the audit log has it for good."""
_CLAIMS_SHOWN_MAX: Final = 200
"""Machines with a claim that are read for operators: a room that waits for approval shows as one problem."""
_NAMES_SHOWN_MAX: Final = 5

_BOOT_TOKEN_REASONS: Final = {
    ClaimDecision.TOKEN_SPENT: "spent",
    ClaimDecision.FOREIGN_MACHINE: "foreign_machine",
}
"""Labels of the metric of refused boot tokens."""

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class EnrolmentGrant:
    """The right to enrol machines, from a token.

    Attributes:
        token_name: name of the token, for the audit.
        room_id: room whose machines it enrols; None for all rooms.
        boot_hash: hash of a boot token, which enrols one machine; empty for a token for enrolment.
    """

    token_name: str
    room_id: str | None = None
    boot_hash: str = dataclasses.field(default="", repr=False)


class EnrolmentDesk:
    """Claims of agents, and the list of those that need an operator. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, presence: Presence, access: MachineAccess, mode: EnrolmentMode) -> None:
        """Decide claims.

        Args:
            store: has the machines.
            presence: machines whose agents are active.
            access: forgets the secrets that new ones replace.
            mode: rule for machines whose room has none of its own.
        """
        self._store = store
        self._presence = presence
        self._access = access
        self._mode = mode
        self._claiming = GroupCommit(store, store.enrolments.claim)
        self._claimed: list[Machine] = []
        self._stale = asyncio.Event()

    async def claim(self, check_in: CheckIn, grant: EnrolmentGrant, address: str) -> ClaimResult:
        """Return the machine's new secret, or the code with which its agent waits for approval.

        Raises:
            RequestRefusedError: the agent can't enrol as this machine.
            DatabaseError: the database is unavailable; the agent retries.
        """
        report = dataclasses.replace(report_of(check_in, address), room_id=grant.room_id)
        result = await self._claiming.submit(
            Claim(
                report=report,
                run_hash=secret_hash(check_in.agent_id),
                token_name=grant.token_name,
                room_id=grant.room_id,
                mode=self._mode,
                last_heard=self._presence.last_heard,
                boot_hash=grant.boot_hash,
            )
        )
        self._stale.set()
        name = check_in.name if result.machine is None else result.machine.name
        if result.decision is ClaimDecision.GRANTED and result.machine is not None:
            self._access.forget(result.machine.machine_id)
            _log.info("machine_enrolled", machine=name, address=address, token=grant.token_name)
            return result
        if result.decision is ClaimDecision.WAITING:
            return result
        if result.decision in _BOOT_TOKEN_REASONS:
            BOOT_TOKEN_REFUSALS.labels(_BOOT_TOKEN_REASONS[result.decision]).inc()
        _log.warning("claim_refused", machine=name, address=address, reason=result.decision.name.lower())
        raise _refusal(result, name, grant)

    def is_revoked(self, machine_id: str) -> bool:
        """Return whether a machine is revoked, as far as this daemon knows."""
        return self._access.is_revoked(machine_id)

    def problems(self) -> list[Problem]:
        """Return the claims that an operator should look at, as of the last few seconds."""
        now = datetime.now(UTC)
        waiting = [machine for machine in self._claimed if machine.enrolment is EnrolmentState.WAITING]
        found = []
        if waiting:
            names = ", ".join(machine.name for machine in waiting[:_NAMES_SHOWN_MAX])
            more = f" and {len(waiting) - _NAMES_SHOWN_MAX} more" if len(waiting) > _NAMES_SHOWN_MAX else ""
            text = (
                f"waiting for approval: {names}{more}; compare the codes on their screens, then approve them"
            )
            found.append(Problem(ProblemKind.ENROLMENT, text, _first_claim(waiting)))
        for machine in self._claimed:
            claimed_at = machine.claimed_at
            if machine.enrolment is EnrolmentState.WAITING or claimed_at is None:
                continue
            if now - claimed_at < _SHOWN_FOR:
                text = (
                    f"a second agent, at {machine.claimed_from}, claims to be {machine.name} ({machine.machine_id}): "
                    "look for a cloned or forged machine; its claims are refused while the first one is active"
                )
                found.append(Problem(ProblemKind.ENROLMENT, text, claimed_at))
        return found

    def look_again(self) -> None:
        """Read the claims again: an operator has decided one."""
        self._stale.set()

    async def run(self) -> None:
        """Keep the list of claims current until cancelled."""
        store = self._store
        while True:
            self._stale.clear()
            with contextlib.suppress(DatabaseError):  # the store shows that as a problem
                self._claimed = await store.run(store.enrolments.needing_attention, _CLAIMS_SHOWN_MAX)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._stale.wait()


def report_of(check_in: CheckIn, address: str) -> MachineReport:
    """Return the description of the machine in a check-in."""
    return MachineReport(
        name=check_in.name,
        macs=check_in.macs,
        serial=check_in.serial,
        asset_tag=check_in.asset_tag,
        address=address,
        agent_version=check_in.version,
        inventory=check_in.inventory,
        hardware=check_in.hardware,
    )


def _refusal(result: ClaimResult, name: str, grant: EnrolmentGrant) -> RequestRefusedError:
    match result.decision:
        case ClaimDecision.BLOCKED:
            return forbidden(
                f"machine {name} is revoked: an operator can readmit it with 'diskcast machines readmit'"
            )
        case ClaimDecision.FOREIGN_ROOM:
            return forbidden(
                f"machine {name} isn't in room {grant.room_id!r}, for which the token is: use a token of its own room, "
                "or move the machine"
            )
        case ClaimDecision.TOKEN_SPENT:
            return unauthorised(
                "the boot token has expired, or another agent has used it: boot the machine over the network again"
            )
        case ClaimDecision.FOREIGN_MACHINE:
            return forbidden(
                f"the boot token is of another machine than {name}: boot the machine over the network again, by the "
                "network card that it enrols with"
            )
    return conflict(
        f"another agent is active as machine {name}: stop that one. If it was this machine before a restart, it may "
        f"enrol {HOLDER_SILENT.total_seconds():g} s after its last check-in; operators see both"
    )


def _first_claim(machines: list[Machine]) -> datetime:
    return min(machine.claimed_at or datetime.now(UTC) for machine in machines)
