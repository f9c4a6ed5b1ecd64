"""Machines: list, add, show, change and remove them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import Query
from starlette.responses import Response

from sender.api.bodies.csv_download import csv_download
from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.bodies.responses import Page
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.request_models.field_types import TEXT_PATTERN
from sender.api.request_models.machines import ApprovalInput, MachineChange, MachineInput
from sender.api.routes.parameters import MachineIdPath, RoomFilter
from sender.daemon.context import Services
from sender.daemon.machine_access import Revocation
from sender.refusals import invalid, not_found
from sender.store.records.casts import HistoryLine
from sender.store.records.hardware import InventoryLine, MachineHardware, inventory_line
from sender.store.records.machines import Machine, MachineRevocation

SEARCH_CHARACTERS_MAX: Final = 100
"""Longest search: each of its words is one condition of the query."""

Search = Annotated[
    str,
    Query(
        pattern=TEXT_PATTERN,
        max_length=SEARCH_CHARACTERS_MAX,
        description="Only machines with each of these words in their name, place, note, identifiers or hardware.",
        examples=["4kn nvme"],
    ),
]


async def list_machines(
    services: ServicesOf,
    room_id: RoomFilter = None,
    search: Search = "",
    limit: Limit = LIMIT_DEFAULT,
    cursor: Cursor = None,
) -> Page[Machine]:
    """List machines, by name."""
    items, next_cursor = await services.store.run(
        services.store.machines.list, room_id=room_id, search=search, after=cursor, limit=limit
    )
    return Page(items=items, next_cursor=next_cursor)


async def download_machines(
    services: ServicesOf, room_id: RoomFilter = None, search: Search = ""
) -> Response:
    """Download machines with their hardware as CSV."""
    store = services.store

    def page(after: str | None, rows: int) -> tuple[list[InventoryLine], str | None]:
        with store.transaction():
            machines, cursor = store.machines.list(room_id, search, after, rows)
            hardware = store.hardware.of_machines([machine.machine_id for machine in machines])
        return [inventory_line(machine, hardware.get(machine.machine_id)) for machine in machines], cursor

    return await csv_download(
        InventoryLine, "diskcast-machines", lambda after, rows: store.run(page, after, rows)
    )


async def get_machine_hardware(services: ServicesOf, machine_id: MachineIdPath) -> MachineHardware:
    """Show a machine's hardware, as its agent reported it."""
    store = services.store
    found: dict[str, MachineHardware] = await store.run(store.hardware.of_machines, [machine_id])
    if machine_id not in found:
        raise not_found("hardware of machine", machine_id)
    return found[machine_id]


async def add_machine(services: ServicesOf, actor: ActorOf, body: MachineInput) -> Machine:
    """Add a machine.

    An unknown machine that checks in is added automatically, without a room.
    """
    if body.room_id is not None:
        await _room_given(services, body.room_id)
    machine = Machine(
        machine_id="",
        name=body.name,
        room_id=body.room_id,
        macs=tuple(dict.fromkeys(body.macs)),
        serial=body.serial,
        asset_tag=body.asset_tag,
        position=body.position,
        note=body.note,
        address="",
        agent_version="",
        inventory={},
        created_at=datetime.now(UTC),
        last_seen_at=None,
    )
    added: Machine = await services.store.run(services.store.machines.add, machine, audit=actor.note())
    services.live_state.forget()
    return added


async def get_machine(services: ServicesOf, machine_id: MachineIdPath) -> Machine:
    """Show a machine."""
    machine = await services.store.run(services.store.machines.get, machine_id)
    if machine is None:
        raise not_found("machine", machine_id)
    return machine


async def change_machine(
    services: ServicesOf, actor: ActorOf, machine_id: MachineIdPath, body: MachineChange
) -> Machine:
    """Change the given fields of a machine."""
    given: dict[str, Any] = body.given()
    if given.get("room_id") is not None:
        await _room_given(services, given["room_id"])
    if "macs" in given:
        given["macs"] = tuple(dict.fromkeys(given["macs"]))
    machine = await services.store.run(
        services.store.machines.change, machine_id, audit=actor.note(), **given
    )
    if machine is None:
        raise not_found("machine", machine_id)
    forget_cached(services, machine_id)
    return machine


async def remove_machine(services: ServicesOf, actor: ActorOf, machine_id: MachineIdPath) -> Response:
    """Forget a machine; its history stays."""
    if not await services.store.run(services.store.machines.remove, machine_id, audit=actor.note()):
        raise not_found("machine", machine_id)
    services.presence.forget(machine_id)
    services.access.lock_out(machine_id, actor.name)
    forget_cached(services, machine_id)
    return Response(status_code=204)


async def approve_machine(
    services: ServicesOf, actor: ActorOf, machine_id: MachineIdPath, body: ApprovalInput
) -> Machine:
    """Approve a machine that waits.

    The code must be the one that its agent shows. The agent gets the machine's secret within seconds.
    """
    store = services.store
    machine = await store.run(store.enrolments.approve, machine_id, body.code, audit=actor.note())
    return _decided(services, machine_id, machine)


async def revoke_machine(
    services: ServicesOf, actor: ActorOf, machine_id: MachineIdPath
) -> MachineRevocation:
    """Revoke a machine's access.

    It is out within five seconds, also of a running cast, which continues with new keys. While the database is
    unavailable, it is out of this daemon only, until the database is back.
    """
    revocation = await services.access.revoke(machine_id, actor)
    if revocation is Revocation.UNKNOWN_MACHINE:
        raise not_found("machine", machine_id)
    forget_cached(services, machine_id)
    services.desk.look_again()
    return MachineRevocation(machine_id, revocation is Revocation.RECORDED)


async def readmit_machine(services: ServicesOf, actor: ActorOf, machine_id: MachineIdPath) -> Machine:
    """Let a revoked machine enrol again.

    Its old secret stays invalid: the agent needs a token for enrolment.
    """
    return _decided(services, machine_id, await services.access.readmit(machine_id, actor))


def _decided(services: Services, machine_id: str, machine: Machine | None) -> Machine:
    """Return a machine whose enrolment an operator has changed."""
    if machine is None:
        raise not_found("machine", machine_id)
    forget_cached(services, machine_id)
    services.desk.look_again()
    return machine


async def list_machine_history(
    services: ServicesOf, machine_id: MachineIdPath, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[HistoryLine]:
    """List the casts to a machine, newest first.

    The history of a removed machine is kept.
    """
    items, next_cursor = await services.store.run(
        services.store.history.lines, machine_id=machine_id, after=cursor, limit=limit
    )
    return Page(items=items, next_cursor=next_cursor)


def forget_cached(services: Services, machine_id: str | None = None) -> None:
    """Drop cached data of a machine, or of all online machines."""
    services.live_state.forget()
    for present in services.presence.online if machine_id is None else ():
        services.check_ins.forget(present.machine.machine_id)
    if machine_id is not None:
        services.check_ins.forget(machine_id)


async def _room_given(services: Services, room_id: str) -> None:
    """Refuse a body that names an unknown room."""
    if await services.store.run(services.store.rooms.get, room_id) is None:
        raise invalid(f"room_id: there is no room {room_id!r}")
