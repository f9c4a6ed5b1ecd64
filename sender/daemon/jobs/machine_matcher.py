"""Give a joining receiver the identity of the machine that its ticket names."""

from __future__ import annotations

import asyncio
import dataclasses
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
"""Timeout of a look-up during a join: without an answer the machine takes part under the name that its agent gives."""
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
        """Return the request under the operator's name of its machine.

        Only the ticket says which machine it is: whatever the agent reports about itself is for people.
        """
        inventory = {key: value for key, value in request.inventory.items() if key != MACHINE_ID_KEY}
        machine_id = request.machine_id
        if machine_id is None:
            return dataclasses.replace(request, inventory=inventory)
        return dataclasses.replace(
            request,
            name=str(JOIN_FIELDS["name"].encode(await self._name_of(machine_id, request))),
            inventory={**inventory, MACHINE_ID_KEY: machine_id},
        )

    async def _name_of(self, machine_id: str, request: JoinRequest) -> str:
        """Return the name of the machine's line in this cast, or else the operator's name of the machine."""
        row = self._job.records.machine_of(machine_id)
        name = row.name if row is not None else self._job.targets.get(machine_id)
        if name:
            return name
        # Another daemon of the same database may have assigned the cast, after the machine was moved into the room.
        try:
            async with asyncio.timeout(LOOK_UP_S), self._look_up_slots:
                machine: Machine | None = await self._store.run(self._store.machines.get, machine_id)
        except (DatabaseError, TimeoutError) as error:
            why = str(error) or f"no answer for {LOOK_UP_S:g} s"
            _log.warning("machine_not_looked_up", machine=machine_id, address=request.address, error=why)
            return request.name
        return request.name if machine is None else machine.name
