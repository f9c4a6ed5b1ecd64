"""Match a joining receiver with a machine of the database: by its check-in, or else by its hardware."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Final

import structlog

from protocol.control.check_in import MACHINE_ID_KEY
from protocol.control.control_messages import JOIN_FIELDS
from protocol.errors import DatabaseError
from protocol.model.session_records import JoinRequest
from sender.daemon.jobs.cast_job import CastJob
from sender.store.records.machines import Machine
from sender.store.store import Store

LOOK_UP_S: Final = 5.0
"""Timeout of a look-up during a join: without an answer the machine takes part under its own name."""
LOOK_UPS_AT_ONCE_MAX: Final = 8
"""Further look-ups wait, a millisecond each: a room that joins at once mustn't fill the database's queue."""

_log = structlog.get_logger(__name__)


class MachineMatcher:
    """The matcher of receivers that join one cast. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, job: CastJob) -> None:
        self._store = store
        self._job = job
        self._look_up_slots = asyncio.Semaphore(LOOK_UPS_AT_ONCE_MAX)

    async def match(self, request: JoinRequest) -> JoinRequest:
        """Return the request with the name and id of its machine; unchanged if the machine is unknown.

        A machine that is in the cast already, or is complete, isn't matched again: it images a second disk, which has
        a history line of its own. The caller joins at once, so of two simultaneous requests one is first.
        """
        claimed = request.inventory.get(MACHINE_ID_KEY)
        if claimed is not None:
            if await self._is_planned_for(claimed, request) and self._may_claim(claimed, request):
                return request
            _log.warning(
                "machine_id_rejected", machine=request.name, address=request.address, machine_id=claimed
            )
            inventory = {key: value for key, value in request.inventory.items() if key != MACHINE_ID_KEY}
            request = dataclasses.replace(request, inventory=inventory)
        identity = request.identity
        if identity is None:
            return request
        find = self._store.machines.find
        machine = await self._look_up(
            request, lambda: find(identity.macs, identity.serial, identity.asset_tag)
        )
        if machine is None or self._has_place(machine.machine_id, request.agent_id):
            return request
        return dataclasses.replace(
            request,
            name=str(JOIN_FIELDS["name"].encode(machine.name)),
            inventory={**request.inventory, MACHINE_ID_KEY: machine.machine_id},
        )

    async def _is_planned_for(self, machine_id: str, request: JoinRequest) -> bool:
        """Return whether the cast was planned for that machine, or has a line for it.

        Another daemon of the same database may have assigned it, after it was moved into the room.
        """
        if machine_id in self._job.targets or self._job.records.machine_of(machine_id) is not None:
            return True
        machine = await self._look_up(request, lambda: self._store.machines.get(machine_id))
        return machine is not None and self._job.cast.plan.includes(machine)

    def _may_claim(self, machine_id: str, request: JoinRequest) -> bool:
        """Return whether the claim takes no other machine's history line, of which each machine id has one.

        An agent that waits for casts joins under its machine's id, even after a restart.
        """
        if self._has_place(machine_id, request.agent_id):
            return False
        row = self._job.records.machine_of(machine_id)
        if row is None or row.joined_at is None or request.agent_id == machine_id:
            return True
        return (row.name, row.address) == (request.name, request.address)

    async def _look_up(self, request: JoinRequest, query: Callable[[], Machine | None]) -> Machine | None:
        """Return the result of ``query``, or None if the database doesn't answer soon."""
        try:
            async with asyncio.timeout(LOOK_UP_S), self._look_up_slots:
                machine: Machine | None = await self._store.run(query)
        except (DatabaseError, TimeoutError) as error:
            why = str(error) or f"no answer for {LOOK_UP_S:g} s"
            _log.warning("machine_not_looked_up", machine=request.name, address=request.address, error=why)
            return None
        return machine

    def _has_place(self, machine_id: str, agent_id: str) -> bool:
        """Return whether another agent of that machine has a place in the cast and keeps it."""
        with self._job.locked_session.read() as (session, _now):
            return any(
                record.inventory.get(MACHINE_ID_KEY) == machine_id
                and record.agent_id != agent_id
                and not record.state.reclaimable
                for record in session.receivers.values()
            )
