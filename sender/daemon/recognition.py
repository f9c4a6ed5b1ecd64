"""Which machine it is that joins a cast without having checked in: its agent says by what it may be known."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from protocol.check_in import MACHINE_ID_KEY
from protocol.control_messages import JOIN_FIELDS
from protocol.errors import DatabaseError
from protocol.session_records import JoinRequest

if TYPE_CHECKING:
    from sender.cast.shared_session import SharedSession
    from sender.store.database import Store

LOOK_UP_S: Final = 5.0
"""A join waits no longer for the database: without it the machine takes part all the same, under its own name."""
LOOK_UPS_AT_ONCE_MAX: Final = 8
"""Others wait for their turn, a millisecond each: a room that joins at once mustn't fill the database's queue."""

_log = structlog.get_logger(__name__)


class Recognition:
    """Recognises machines that join one cast. It belongs to the event loop."""

    def __init__(self, store: Store, shared: Callable[[], SharedSession]) -> None:
        """Look into ``store``; ``shared`` gives the cast's session."""
        self._store = store
        self._shared = shared
        self._turns = asyncio.Semaphore(LOOK_UPS_AT_ONCE_MAX)

    async def recognise(self, request: JoinRequest) -> JoinRequest:
        """The request as the operator's list of machines has it, if that knows the machine; else as it is.

        A machine that is in the cast already, or is complete, isn't recognised again: it images a second disk, which
        has a line of its own in history. The caller joins at once, so that of two requests at the same moment one is
        first.
        """
        identity = request.identity
        if identity is None or MACHINE_ID_KEY in request.inventory:
            return request
        try:
            async with asyncio.timeout(LOOK_UP_S), self._turns:
                find = self._store.machines.find
                machine = await self._store.run(find, identity.macs, identity.serial, identity.asset_tag)
        except (DatabaseError, TimeoutError) as error:
            why = str(error) or f"no answer for {LOOK_UP_S:g} s"
            _log.warning("machine_not_looked_up", machine=request.name, address=request.address, error=why)
            return request
        if machine is None or _has_place(self._shared(), machine.machine_id, request.agent_id):
            return request
        return dataclasses.replace(
            request,
            name=str(JOIN_FIELDS["name"].encode(machine.name)),
            inventory={**request.inventory, MACHINE_ID_KEY: machine.machine_id},
        )


def _has_place(shared: SharedSession, machine_id: str, agent_id: str) -> bool:
    """Whether another agent of that machine has a place in the cast that it won't give up."""
    with shared.look() as (session, _now):
        return any(
            record.inventory.get(MACHINE_ID_KEY) == machine_id
            and record.agent_id != agent_id
            and not record.state.gone
            for record in session.receivers.values()
        )
