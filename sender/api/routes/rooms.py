"""Rooms and their machines."""

from __future__ import annotations

import re
import secrets
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Path, Query, Request
from starlette.responses import Response

from sender.api.guarded_route import ActorOf, ServicesOf
from sender.api.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.request_models import (
    MACHINE_ID_CHARACTERS_MAX,
    PLAIN_ID_PATTERN,
    ROOM_ID_PATTERN,
    MachineChange,
    MachineInput,
    RoomChange,
    RoomInput,
)
from sender.api.responses import Page, RoomLive
from sender.daemon.context import Services
from sender.refusals import invalid, not_found
from sender.store.records.casts import HistoryLine
from sender.store.records.machines import ImportResult, Machine, Room

RoomIdPath = Annotated[str, Path(pattern=ROOM_ID_PATTERN, max_length=64, examples=["classroom-101"])]
MachineIdPath = Annotated[str, Path(pattern=PLAIN_ID_PATTERN, max_length=MACHINE_ID_CHARACTERS_MAX)]
RoomFilter = Annotated[
    str | None, Query(pattern=ROOM_ID_PATTERN, max_length=64, description="Only of this room.")
]


async def list_rooms(services: ServicesOf, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None) -> Page[Room]:
    """List rooms, by name."""
    items, next_cursor = await services.store.run(services.store.rooms.list, after=cursor, limit=limit)
    return Page(items=items, next_cursor=next_cursor)


async def add_room(services: ServicesOf, actor: ActorOf, body: RoomInput) -> Room:
    """Add a room."""
    room = Room(
        room_id=body.room_id or _id_of(body.name),
        name=body.name,
        description=body.description,
        site=body.site,
        interface=body.interface,
        created_at=datetime.now(UTC),
    )
    return await services.store.run(services.store.rooms.add, room, audit=actor.note())


async def get_room(services: ServicesOf, room_id: RoomIdPath) -> Room:
    """Show a room."""
    return await _room(services, room_id)


async def change_room(services: ServicesOf, actor: ActorOf, room_id: RoomIdPath, body: RoomChange) -> Room:
    """Change what is given of a room."""
    room = await services.store.run(services.store.rooms.change, room_id, audit=actor.note(), **body.given())
    services.rooms_now.forget(room_id)
    if room is None:
        raise not_found("room", room_id)
    return room


async def remove_room(services: ServicesOf, actor: ActorOf, room_id: RoomIdPath) -> Response:
    """Remove a room; its machines stay, without a room."""
    if not await services.store.run(services.store.rooms.remove, room_id, audit=actor.note()):
        raise not_found("room", room_id)
    _forget(services)
    return Response(status_code=204)


async def import_machines(
    services: ServicesOf, actor: ActorOf, room_id: RoomIdPath, request: Request
) -> ImportResult:
    """Import a room's machines from CSV.

    The first line names the columns: ``name``, ``mac``, ``serial``, ``asset_tag``, ``position``, ``note``; a machine
    that is known by its address, serial, tag or name is changed, others are added. With a problem in any line nothing
    is changed, and the answer lists them.
    """
    await _room(services, room_id)
    try:
        text = (await request.body()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid(f"the file isn't UTF-8 (byte {error.start}): save it as CSV UTF-8") from error
    result = await services.store.run(services.store.machines.import_csv, room_id, text, audit=actor.note())
    _forget(services)
    return result


async def watch_room(services: ServicesOf, room_id: RoomIdPath) -> RoomLive:
    """Show a room's machines as they are now."""
    room = await _room(services, room_id)
    return RoomLive(room=room, machines=await services.rooms_now.machines(room_id))


async def list_machines(
    services: ServicesOf, room_id: RoomFilter = None, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[Machine]:
    """List machines, by name."""
    items, next_cursor = await services.store.run(
        services.store.machines.list, room_id=room_id, after=cursor, limit=limit
    )
    return Page(items=items, next_cursor=next_cursor)


async def add_machine(services: ServicesOf, actor: ActorOf, body: MachineInput) -> Machine:
    """Add a machine; one that checks in by itself is added without a room."""
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
    services.rooms_now.forget()
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
    """Change what is given of a machine."""
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
    _forget(services, machine_id)
    return machine


async def remove_machine(services: ServicesOf, actor: ActorOf, machine_id: MachineIdPath) -> Response:
    """Forget a machine; its history stays."""
    if not await services.store.run(services.store.machines.remove, machine_id, audit=actor.note()):
        raise not_found("machine", machine_id)
    services.presence.forget(machine_id)
    _forget(services, machine_id)
    return Response(status_code=204)


async def list_machine_history(
    services: ServicesOf, machine_id: MachineIdPath, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[HistoryLine]:
    """List what was done to a machine, the newest first; also to one that was removed."""
    items, next_cursor = await services.store.run(
        services.store.history.lines, machine_id=machine_id, after=cursor, limit=limit
    )
    return Page(items=items, next_cursor=next_cursor)


def _forget(services: Services, machine_id: str | None = None) -> None:
    """What is kept in memory of a machine, or of all that are there, is looked up anew."""
    services.rooms_now.forget()
    for attendance in services.presence.online if machine_id is None else ():
        services.desk.forget(attendance.machine.machine_id)
    if machine_id is not None:
        services.desk.forget(machine_id)


def _id_of(name: str) -> str:
    """An id made of a name: ``Classroom 101`` is ``classroom-101``."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:64].strip("-") or f"room-{secrets.token_hex(3)}"


async def _room(services: Services, room_id: str) -> Room:
    room: Room | None = await services.store.run(services.store.rooms.get, room_id)
    if room is None:
        raise not_found("room", room_id)
    return room


async def _room_given(services: Services, room_id: str) -> None:
    """A room that a body names must be there."""
    if await services.store.run(services.store.rooms.get, room_id) is None:
        raise invalid(f"room_id: there is no room {room_id!r}")
