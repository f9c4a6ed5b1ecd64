"""Answers to agents' check-ins: enrol the machine, record its last result, assign a capture or a cast."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import structlog

from protocol.constants import ERROR_TEXT_BYTES_MAX
from protocol.control.check_in import AgentState, Assignment, CastOutcome, CheckIn, CheckInAnswer
from protocol.errors import (
    DatabaseError,
    PreflightRefusedError,
    RollbackError,
    TrustError,
    UnsignedImageError,
)
from protocol.model.hardware import Hardware
from protocol.model.session_records import CastId
from sender.daemon.captures.capture_desk import CaptureDesk
from sender.daemon.enrolment_desk import EnrolmentDesk, EnrolmentGrant, report_of
from sender.daemon.jobs.awaited_casts import AwaitedCasts
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.cast_verdict import assigned_machine
from sender.daemon.jobs.ended_machines import EndedMachines
from sender.daemon.preflight_desk import PreflightDesk
from sender.daemon.presence import MachinePresence, Presence
from sender.daemon.ticket_office import TicketOffice
from sender.metrics.boot_metrics import IMAGE_REFUSALS
from sender.refusals import unauthorised
from sender.store.group_commit import GroupCommit
from sender.store.records.captures import Capture
from sender.store.records.casts import Cast, CastMachine
from sender.store.records.machine_states import FINAL_STATES, MachineState
from sender.store.records.machines import Machine
from sender.store.repositories.audit import Audit
from sender.store.store import Store
from sender.store.write_behind import Recorder

IDLE_AFTER_S: Final = 1.0
"""Pause of an idle agent before its next check-in: short, since the long poll waits."""
RECEIVING_AFTER_S: Final = 4.0
"""Pause of a receiving agent before its next check-in: well within the ten seconds that a takeover may take."""
APPROVAL_AFTER_S: Final = 3.0
"""Pause of an agent that waits for approval: it continues soon after the click."""
IDLE_RESTART_S: Final = 300.0
"""Time after which a machine that booted for a cast restarts if none waits for it any more. An operator who cancels a
cast to correct it starts the next one within minutes, and a pupil waits no longer for a computer."""
IDLE_RESTART_UNPLANNED_S: Final = 3600.0
"""The same for a machine that registered by booting, or for which an operator asked: its cast may be created when the
last of thirty computers has been switched on. A machine that waits for approval does so for as long as its boot token
is kept, a day."""
_KNOWN_MAX: Final = 4096
"""Machines that are kept in memory: four rooms of the largest size."""
_READ_AGAIN_S: Final = 10.0
"""Age at which a machine's row is read again, since another daemon may have moved the machine."""
_DRAIN_S: Final = 1.0

_TRUST_REASONS: Final = {
    TrustError.exit_code: "untrusted",
    UnsignedImageError.exit_code: "unsigned",
    RollbackError.exit_code: "rollback",
}
"""Exit codes of agents that refused an image before they opened their disk, as labels of a metric."""

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True)
class _KnownMachine:
    """A machine that checks in.

    Attributes:
        report_digest: of everything that its agent reported about it, except for the hardware.
        hardware: its hardware, as its agent reported it to this daemon; None if it didn't.
        read_at: monotonic seconds at which the machine was last read.
    """

    report_digest: str
    machine: Machine
    read_at: float
    hardware: Hardware | None


class CheckInHandler:
    """The handler of agents' check-ins. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        registry: CastRegistry,
        presence: Presence,
        desk: EnrolmentDesk,
        tickets: TicketOffice,
        ended: EndedMachines,
        awaited: AwaitedCasts,
        captures: CaptureDesk,
        preflight: PreflightDesk,
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._registry = registry
        self._presence = presence
        self._desk = desk
        self._tickets = tickets
        self._ended = ended
        self._awaited = awaited
        self._captures = captures
        self._preflight = preflight
        self._updating = GroupCommit(store, store.machines.record)
        self._recording = GroupCommit(store, self._write_outcomes)
        self._known: OrderedDict[str, _KnownMachine] = OrderedDict()
        self._reading = asyncio.Lock()
        self._refusals: OrderedDict[str, None] = (
            OrderedDict()
        )  # counted ones: agents report a result repeatedly

    async def answer(self, check_in: CheckIn, agent: str | EnrolmentGrant, address: str) -> CheckInAnswer:
        """Answer one check-in; wait up to ``wait_s`` for a cast if the agent is idle.

        Args:
            check_in: the agent's message, checked.
            agent: id of the machine whose secret the agent has, or the grant of its token.
            address: its source.

        Raises:
            RequestRefusedError: the agent can't enrol, or its machine was removed.
            DatabaseError: the machine isn't known yet and the database is unavailable; the agent retries.
        """
        if isinstance(agent, EnrolmentGrant):
            return await self._enrol(check_in, agent, address)
        machine = await self._machine(check_in, agent, address)
        present = self._presence.note(machine, check_in)
        recorded = None
        if check_in.last_result is not None and await self._record(machine, check_in.last_result):
            recorded = check_in.last_result.cast_id
        if check_in.state is AgentState.LEAVING:
            return await self._leave(machine, recorded)
        present.polls += 1
        try:
            work = await self._await_work(machine, check_in)
        finally:
            present.polls -= 1
            present.heard_at = time.monotonic()
        assignment, capture = None, None
        if isinstance(work, Cast):
            self._note_assigned(work, machine, present)
            ticket = await self._tickets.issue(work.cast_id, machine.machine_id)
            assignment = _assignment(work, ticket, self._patch_id(work, machine))
        elif work is not None:
            capture = self._captures.assign(work)
        return CheckInAnswer(
            machine_id=machine.machine_id,
            name=machine.name,
            recorded_cast_id=recorded,
            assignment=assignment,
            check_in_after_s=IDLE_AFTER_S if check_in.state is AgentState.IDLE else RECEIVING_AFTER_S,
            capture=capture,
            cast_planned=work is not None or await self._awaited.find(machine) is not None,
        )

    def forget(self, machine_id: str) -> None:
        """Look a machine up again at its next check-in, since it was changed, removed or revoked."""
        self._known.pop(machine_id, None)
        self._registry.changes.notify()

    async def _leave(self, machine: Machine, recorded: CastId | None) -> CheckInAnswer:
        """Answer an agent that exits; a machine that boots over the network soon enrols again."""
        self._presence.forget(machine.machine_id)
        self._known.pop(machine.machine_id, None)
        await self._store.run(self._store.enrolments.release, machine.machine_id)
        return CheckInAnswer(machine.machine_id, machine.name, recorded, None, 0.0)

    async def _enrol(self, check_in: CheckIn, grant: EnrolmentGrant, address: str) -> CheckInAnswer:
        """Answer an agent without its machine's secret: it gets that and nothing else."""
        claimed = await self._desk.claim(check_in, grant, address)
        machine = claimed.machine
        assert machine is not None
        self._presence.note_sign(machine.machine_id)
        waits = not claimed.secret
        idle_restart_s = None
        if grant.boot_hash and not waits:
            idle_restart_s = IDLE_RESTART_S if claimed.booted_for_cast else IDLE_RESTART_UNPLANNED_S
        return CheckInAnswer(
            machine_id=machine.machine_id,
            name=machine.name,
            recorded_cast_id=None,
            assignment=None,
            check_in_after_s=APPROVAL_AFTER_S if waits else 0.0,
            machine_secret=claimed.secret,
            approval_code=machine.approval_code if waits else "",
            idle_restart_s=idle_restart_s,
        )

    async def _machine(self, check_in: CheckIn, machine_id: str, address: str) -> Machine:
        """Return the agent's machine, written once per run of an agent and when its reported description changes.

        Raises:
            RequestRefusedError: it was removed.
        """
        report = dataclasses.replace(report_of(check_in, address), machine_id=machine_id)
        described = (check_in.agent_id, dataclasses.replace(report, hardware=None))
        digest = hashlib.blake2b(repr(described).encode(), digest_size=16).hexdigest()
        known = self._known.get(machine_id)
        # An agent leaves its hardware out when a daemon knows it.
        same_hardware = report.hardware is None or (known is not None and known.hardware == report.hardware)
        if known is not None and known.report_digest == digest and same_hardware:
            self._known.move_to_end(machine_id)
            recorded = await self._recorded(known)
            if recorded is not None:
                return recorded
        machine = await self._updating.submit(report)
        if machine is None:
            self._known.pop(machine_id, None)
            raise unauthorised(f"machine {machine_id} was removed: enrol it again with a token")
        hardware = report.hardware or (known.hardware if known is not None else None)
        self._known[machine_id] = _KnownMachine(digest, machine, time.monotonic(), hardware)
        while len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
        _log.info("machine_checked_in", machine=machine.name, address=address, version=check_in.version)
        return machine

    async def _recorded(self, known: _KnownMachine) -> Machine | None:
        """Return the machine as recorded; None if it is gone, since another daemon may have moved or removed it."""
        if time.monotonic() - known.read_at >= _READ_AGAIN_S:
            async with self._reading:
                if time.monotonic() - known.read_at >= _READ_AGAIN_S:
                    # A known machine takes part while the database is unavailable.
                    with contextlib.suppress(DatabaseError):
                        await self._read_again()
        return known.machine if self._known.get(known.machine.machine_id) is known else None

    async def _read_again(self) -> None:
        """Read all known machines in one query: one for each check-in takes half the processor time of an idle room.

        Raises:
            DatabaseError: the database is unavailable; the next attempt is due after the usual time.
        """
        store, asked = self._store, dict(self._known)
        for known in asked.values():
            known.read_at = time.monotonic()
        machines: list[Machine] = await store.run(store.machines.get_many, list(asked))
        found = {machine.machine_id: machine for machine in machines}
        for machine_id, known in asked.items():
            if machine_id in found:
                known.machine = found[machine_id]
            elif self._known.get(machine_id) is known:  # and not one that has enrolled again meanwhile
                del self._known[machine_id]

    async def _await_work(self, machine: Machine, check_in: CheckIn) -> Cast | Capture | None:
        """Return the capture that a machine should make, or the cast that it should join; wait if it is idle."""
        deadline = time.monotonic() + check_in.wait_s
        while True:
            if machine.machine_id not in self._known or self._desk.is_revoked(machine.machine_id):
                return None  # the machine was changed in the meantime: its agent checks in again
            if check_in.state is AgentState.IDLE:
                # Before any cast, which would overwrite the disk.
                capture = self._captures.of_machine(machine.machine_id)
                if capture is not None:
                    return capture
            cast = await self._cast_for(machine, check_in)
            left_s = deadline - time.monotonic()
            if cast is not None or left_s <= 0 or check_in.state is not AgentState.IDLE:
                return cast
            await self._registry.changes.wait(left_s)

    async def _cast_for(self, machine: Machine, check_in: CheckIn) -> Cast | None:
        """Return the cast that a machine should join: its current one, or else the oldest that is planned for it."""
        registry = self._registry
        candidates = [registry.latest(cast) for cast in registry.unfinished.values()]
        for cast in sorted(candidates, key=lambda cast: cast.created_at):
            if not (cast.phase.live and cast.control_url):
                continue
            current = check_in.cast_id is not None and cast.cast_id == f"{check_in.cast_id:08x}"
            if check_in.state is not AgentState.IDLE:
                if current:
                    return cast
            elif (
                cast.plan.includes(machine)
                and not await self._ended.has_ended(cast, machine.machine_id)
                and not await self._is_excluded(cast, machine)
            ):
                return cast
        return None

    async def _is_excluded(self, cast: Cast, machine: Machine) -> bool:
        """Return whether the machine's hardware doesn't fit: it gets no ticket, and the cast doesn't wait for it.

        The cast has it as failed, with the reason, as if its agent had refused the image before the first write.
        """
        known = self._known.get(machine.machine_id)
        reason = await self._preflight.refusal(
            cast.plan.image_id, cast.raw_bytes, machine.machine_id, None if known is None else known.hardware
        )
        if not reason:
            return False
        _log.warning("machine_excluded", machine=machine.name, cast=cast.cast_id, reason=reason)
        await self._record(machine, _exclusion(cast, reason))
        return True

    def _patch_id(self, cast: Cast, machine: Machine) -> bytes | None:
        """Return the machine's patch in a cast of this daemon; of another daemon's cast its sender names the patch."""
        job = self._registry.jobs.get(cast.cast_id)
        outcome = None if job is None or job.patches is None else job.patches.outcome_of(machine.machine_id)
        return None if outcome is None else outcome.patch_id

    def _note_assigned(self, cast: Cast, machine: Machine, present: MachinePresence) -> None:
        job = self._registry.jobs.get(cast.cast_id)
        if job is not None and present.idle and job.records.machine_of(machine.machine_id) is None:
            job.put_machine(assigned_machine(cast.cast_id, machine.machine_id, machine.name))

    async def _record(self, machine: Machine, outcome: CastOutcome) -> bool:
        """Record an agent's result, unless the cast knows it already; return whether it is in the database.

        It doesn't raise while the database is unavailable: the agent reports the result again.
        """
        cast_id = f"{outcome.cast_id:08x}"
        job = self._registry.jobs.get(cast_id)
        self._audit_trust(machine, outcome)
        try:
            if job is not None:
                row = job.records.machine_of(machine.machine_id)
                if _is_new(outcome, row):
                    job.record_failure(outcome_row(machine, outcome, row))
                return await self._recorder.drain(_DRAIN_S)
            await self._recording.submit((machine, outcome))
            self._ended.forget(cast_id)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  the agent reports it again; the store shows the cause
            _log.warning("result_not_recorded", cast=cast_id, error=str(error))
            return False
        return True

    def _audit_trust(self, machine: Machine, outcome: CastOutcome) -> None:
        """Write an audit entry, once for a machine and cast, if it refused an image or allowed an unsigned one."""
        if outcome.exit_code in _TRUST_REASONS:
            action, detail = "image.refuse", {"exit_code": outcome.exit_code, "error": outcome.error}
        elif outcome.unsigned_allowed:
            action, detail = "image.allow_unsigned", {}
        else:
            return
        cast_id = f"{outcome.cast_id:08x}"
        key = f"{action} {cast_id} {machine.machine_id}"
        if outcome.exit_code in _TRUST_REASONS and key not in self._refusals:
            IMAGE_REFUSALS.labels(_TRUST_REASONS[outcome.exit_code]).inc()
            self._refusals[key] = None
            while len(self._refusals) > _KNOWN_MAX:
                self._refusals.popitem(last=False)
        entry = (f"machine {machine.name}", action, f"cast {cast_id}", detail)
        self._recorder.put(("audit", key), Audit.add, *entry, entry_key=key, at=datetime.now(UTC))

    def _write_outcomes(self, results: Sequence[tuple[Machine, CastOutcome]]) -> list[None]:
        """Record results of casts that don't run here, unless they are recorded already; in a thread of the store."""
        store = self._store
        with store.transaction():
            for cast_id in dict.fromkeys(outcome.cast_id for _, outcome in results):
                known = {row.machine_id: row for row in store.casts.machines(f"{cast_id:08x}")}
                rows = [
                    outcome_row(machine, outcome, known.get(machine.machine_id))
                    for machine, outcome in results
                    if outcome.cast_id == cast_id and _is_new(outcome, known.get(machine.machine_id))
                ]
                if rows:
                    store.casts.put_machines(rows)
        return [None] * len(results)


def _is_new(outcome: CastOutcome, row: CastMachine | None) -> bool:
    """Return whether an agent's result changes its line: a cancelled cast ends before its machines do."""
    if row is None or row.state not in FINAL_STATES:
        return True
    return row.state is MachineState.FAILED and row.exit_code is None and not outcome.success


def outcome_row(machine: Machine, outcome: CastOutcome, row: CastMachine | None) -> CastMachine:
    """Return a machine's line as its agent reports it."""
    base = row or assigned_machine(f"{outcome.cast_id:08x}", machine.machine_id, machine.name)
    lost = outcome.datagrams_expected - outcome.datagrams_received
    return dataclasses.replace(
        base,
        address=base.address or machine.address,
        state=MachineState.COMPLETE if outcome.success else MachineState.FAILED,
        error=outcome.error,
        exit_code=outcome.exit_code,
        unsigned_allowed=outcome.unsigned_allowed,
        patch_id="" if outcome.patch_id is None else outcome.patch_id.hex(),
        progress=1.0 if outcome.success else base.progress,
        bytes_verified=outcome.raw_bytes_verified,
        bytes_kept=outcome.raw_bytes_kept,
        blocks_rewritten=outcome.blocks_rewritten,
        seconds=outcome.seconds_total,
        rate_bytes_per_s=round(outcome.raw_bytes_verified / max(outcome.seconds_total, 1e-3)),
        loss=round(max(0, lost) / outcome.datagrams_expected, 5) if outcome.datagrams_expected else 0.0,
        nacks_count=outcome.nacks_sent,
        socket_drops_count=outcome.socket_drops,
        ended_at=datetime.now(UTC),
    )


def _exclusion(cast: Cast, reason: str) -> CastOutcome:
    text = f"excluded by the preflight: {reason}".encode()[:ERROR_TEXT_BYTES_MAX].decode(errors="ignore")
    return CastOutcome(
        cast_id=CastId(int(cast.cast_id, 16)),
        success=False,
        error=text,
        exit_code=PreflightRefusedError.exit_code,
        unsigned_allowed=False,
        raw_bytes_verified=0,
        raw_bytes_kept=0,
        blocks_rewritten=0,
        datagrams_expected=0,
        datagrams_received=0,
        socket_drops=0,
        nacks_sent=0,
        seconds_receiving=0.0,
        seconds_total=0.0,
    )


def _assignment(cast: Cast, ticket: str, patch_id: bytes | None) -> Assignment:
    host = urllib.parse.urlsplit(cast.control_url).hostname or ""
    return Assignment(
        cast_id=CastId(int(cast.cast_id, 16)),
        image_name=cast.image_name,
        image_id=bytes.fromhex(cast.plan.image_id),
        raw_bytes=cast.raw_bytes,
        control_url=cast.control_url,
        sender_address=host,
        group=cast.group,
        port=cast.port,
        pin=cast.control_pin,
        ticket=ticket,
        version_min=int(cast.image_version or 0),
        patch_id=patch_id,
    )
