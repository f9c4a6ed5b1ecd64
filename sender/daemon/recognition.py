"""Who joins a cast without having checked in: an agent of its own says by what its machine may be known."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Final

import structlog

from protocol.check_in import MACHINE_ID_KEY
from protocol.control_messages import JOIN_FIELDS
from protocol.errors import DatabaseError
from protocol.session_records import JoinRequest

if TYPE_CHECKING:
    from sender.cast.shared_session import SharedSession
    from sender.store.database import Store

LOOK_UP_S: Final = 2.0
"""A join waits no longer for the database: without it the machine takes part all the same, under its own name."""

_log = structlog.get_logger(__name__)


async def recognise(store: Store, shared: SharedSession, request: JoinRequest) -> JoinRequest:
    """The request as the operator's list of machines has it, if that knows the machine; else as it is.

    A machine that is in the cast already, or is complete, isn't recognised again: it images a second disk, which has
    a line of its own in history. The caller joins at once, so that of two requests at the same moment one is first.

    Args:
        store: which machines there are.
        shared: the cast's session.
        request: as the agent says it.
    """
    identity = request.identity
    if identity is None or MACHINE_ID_KEY in request.inventory:
        return request
    try:
        async with asyncio.timeout(LOOK_UP_S):
            machine = await store.run(store.machines.find, identity.macs, identity.serial, identity.asset_tag)
    except (DatabaseError, TimeoutError) as error:
        _log.warning("machine_not_looked_up", machine=request.name, address=request.address, error=str(error))
        return request
    if machine is None or _has_place(shared, machine.machine_id, request.agent_id):
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
