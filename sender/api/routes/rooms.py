"""Rooms: list, create, show, change and remove them."""

from __future__ import annotations

import re
import secrets
import unicodedata
from datetime import UTC, datetime

from fastapi import Request
from starlette.responses import Response

from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.bodies.responses import Page
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.request_models.rooms import RoomChange, RoomInput
from sender.api.routes.machines import forget_cached
from sender.api.routes.parameters import RoomIdPath
from sender.daemon.context import Services
from sender.refusals import invalid, not_found
from sender.store.records.live import RoomLive
from sender.store.records.machines import ImportResult, Room


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
        enrolment=body.enrolment,
        unknown_machines=body.unknown_machines,
        boot_menu=body.boot_menu,
        wake_wave_size=body.wake_wave_size,
        wake_pause_s=body.wake_pause_s,
        created_at=datetime.now(UTC),
    )
    return await services.store.run(services.store.rooms.add, room, audit=actor.note())


async def get_room(services: ServicesOf, room_id: RoomIdPath) -> Room:
    """Show a room."""
    return await _room(services, room_id)


async def change_room(services: ServicesOf, actor: ActorOf, room_id: RoomIdPath, body: RoomChange) -> Room:
    """Change the given fields of a room."""
    room = await services.store.run(services.store.rooms.change, room_id, audit=actor.note(), **body.given())
    services.live_state.forget(room_id)
    if room is None:
        raise not_found("room", room_id)
    return room


async def remove_room(services: ServicesOf, actor: ActorOf, room_id: RoomIdPath) -> Response:
    """Remove a room.

    Its machines stay, without a room.
    """
    if not await services.store.run(services.store.rooms.remove, room_id, audit=actor.note()):
        raise not_found("room", room_id)
    forget_cached(services)
    return Response(status_code=204)


async def import_machines(
    services: ServicesOf, actor: ActorOf, room_id: RoomIdPath, request: Request
) -> ImportResult:
    """Import a room's machines from CSV.

    The first line names the columns: ``name``, ``mac``, ``serial``, ``asset_tag``, ``position``, ``note``. A machine
    that is known by its address, serial, tag or name is changed; others are added. After an error in any line nothing
    is changed, and the response lists the errors.
    """
    await _room(services, room_id)
    text = await csv_text(request)
    result = await services.store.run(services.store.machines.import_csv, room_id, text, audit=actor.note())
    forget_cached(services)
    return result


async def watch_room(services: ServicesOf, room_id: RoomIdPath) -> RoomLive:
    """Show a room and the live state of its machines."""
    room = await _room(services, room_id)
    return RoomLive(room=room, machines=tuple(await services.live_state.machines(room_id)))


async def csv_text(request: Request) -> str:
    """Return the text of a CSV body.

    Raises:
        RequestRefusedError: it isn't UTF-8.
    """
    try:
        return (await request.body()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid(f"the file isn't UTF-8 (byte {error.start}): save it as CSV UTF-8") from error


def _id_of(name: str) -> str:
    """Return an id derived from a name: ``classroom-101`` for ``Classroom 101``."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:64].strip("-") or f"room-{secrets.token_hex(3)}"


async def _room(services: Services, room_id: str) -> Room:
    room: Room | None = await services.store.run(services.store.rooms.get, room_id)
    if room is None:
        raise not_found("room", room_id)
    return room
