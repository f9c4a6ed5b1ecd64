"""Wakes: wake machines by Wake-on-LAN, and show which ones woke."""

from __future__ import annotations

from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.bodies.responses import Page
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.request_models.wakes import WakeInput
from sender.api.routes.parameters import RoomFilter, WakeIdPath
from sender.daemon.context import Services
from sender.refusals import conflict, invalid, not_found
from sender.store.records.machines import Machine, Room
from sender.store.records.wakes import Wake


async def list_wakes(
    services: ServicesOf, room_id: RoomFilter = None, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[Wake]:
    """List wakes, newest first.

    The list is as recorded a few seconds ago.
    """
    items, next_cursor = await services.store.run(
        services.store.wakes.list, room_id=room_id, after=cursor, limit=limit
    )
    return Page(items=items, next_cursor=next_cursor)


async def add_wake(services: ServicesOf, actor: ActorOf, body: WakeInput) -> Wake:
    """Wake machines by Wake-on-LAN.

    Magic packets leave by every network interface of this daemon, in waves. Within three minutes of its packets each
    machine is `woke`, if it booted from the network or its agent checked in, or `silent`.
    """
    room, machines = await _machines(services, body)
    return await services.waker.wake(machines, actor, room=room)


async def get_wake(services: ServicesOf, wake_id: WakeIdPath) -> Wake:
    """Show a wake with the state of each machine."""
    wake = await services.waker.find(wake_id)
    if wake is None:
        raise not_found("wake", wake_id)
    return wake


async def _machines(services: Services, body: WakeInput) -> tuple[Room | None, list[Machine]]:
    """Return the room and the machines of a request.

    Raises:
        RequestRefusedError: a machine or the room doesn't exist, or the room is at another site.
    """
    store = services.store
    room: Room | None = None
    if body.room_id is not None:
        room = await store.run(store.rooms.get, body.room_id)
        if room is None:
            raise invalid(f"room_id: there is no room {body.room_id!r}")
        sites = services.config.server.sites
        if sites and room.site and room.site not in sites:
            raise conflict(
                f"room {room.room_id!r} is at site {room.site!r}, which this daemon doesn't serve, and magic packets "
                "aren't routed: ask a daemon of that site"
            )
        machines = await store.run(store.machines.of_room, body.room_id)
        if not body.machine_ids:
            return room, machines
    else:
        machines = await store.run(store.machines.get_many, body.machine_ids)
    known = {machine.machine_id: machine for machine in machines}
    for machine_id in body.machine_ids:
        if machine_id not in known:
            where = "" if room is None else f" in room {room.room_id!r}"
            raise invalid(f"machine_ids: there is no machine {machine_id!r}{where}")
    return room, [known[machine_id] for machine_id in dict.fromkeys(body.machine_ids)]
