"""Casts: list, plan, show and control them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import Query

from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.bodies.responses import CastTimeline, Page
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.request_models.casts import CancelInput, CastInput, PreflightInput
from sender.api.routes.parameters import CastIdPath, RoomFilter
from sender.api.routes.plans import image_of, plan_of
from sender.daemon.context import Services
from sender.refusals import not_found
from sender.store.records.casts import Cast, CastMachine, CastPhase, Command
from sender.store.records.live import CastLive, LiveCast
from sender.store.records.preflight import Preflight


async def list_casts(
    services: ServicesOf,
    phase: Annotated[CastPhase | None, Query(description="Only casts in this phase.")] = None,
    room_id: RoomFilter = None,
    limit: Limit = LIMIT_DEFAULT,
    cursor: Cursor = None,
) -> Page[Cast]:
    """List casts, newest first."""
    casts: list[Cast] = []
    while True:
        items, cursor = await services.store.run(
            services.store.casts.list,
            phase=phase,
            room_id=room_id,
            after=cursor,
            limit=limit - len(casts),
            phases_now=services.registry.phases(),
        )
        # A cast may have left the phase since the query; the next page then fills its place.
        casts += [cast for cast in map(services.registry.latest, items) if phase in (None, cast.phase)]
        if cursor is None or len(casts) == limit:
            return Page(items=casts, next_cursor=cursor)


async def add_cast(services: ServicesOf, actor: ActorOf, body: CastInput) -> Cast:
    """Plan a cast.

    It starts at its time, or now, when a daemon is free.
    """
    plan = dataclasses.replace(plan_of(services, body), start_at=body.start_at)
    return await services.commands.create(plan, actor)


async def check_machines(services: ServicesOf, body: PreflightInput) -> Preflight:
    """Check whether machines fit an image, before a cast.

    A cast excludes machines that a check refuses, before anything is written; warnings are for the operator. A machine
    whose agent hasn't reported its hardware is unknown.
    """
    image = image_of(services, body.image)
    return await services.preflight.matrix(image, body.room_id, list(dict.fromkeys(body.machine_ids)))


async def get_cast(services: ServicesOf, cast_id: CastIdPath) -> LiveCast:
    """Show a cast with its live state."""
    return services.live_state.live_cast(await _cast(services, cast_id))


async def list_cast_machines(services: ServicesOf, cast_id: CastIdPath) -> Page[CastMachine]:
    """List a cast's machines with their results.

    The list is a single page.
    """
    await _cast(services, cast_id)
    items = await services.store.run(services.store.casts.machines, cast_id)
    return Page(items=items, next_cursor=None)


async def watch_cast(services: ServicesOf, cast_id: CastIdPath) -> CastLive:
    """Show a cast and its machines with their live state."""
    cast = await _cast(services, cast_id)
    return CastLive(
        live=services.live_state.live_cast(cast),
        machines=tuple(await services.live_state.cast_machines(cast)),
    )


async def get_cast_timeline(services: ServicesOf, cast_id: CastIdPath) -> CastTimeline:
    """Show a cast's chart points and events."""
    await _cast(services, cast_id)
    points, events = await services.live_state.timeline(cast_id)
    return CastTimeline(points=points, events=events)


async def start_cast(services: ServicesOf, actor: ActorOf, cast_id: CastIdPath) -> Cast:
    """Start a cast's data with the machines that have joined."""
    return await services.commands.command(cast_id, Command.START, actor)


async def pause_cast(services: ServicesOf, actor: ActorOf, cast_id: CastIdPath) -> Cast:
    """Pause a cast.

    Its machines wait until it is resumed.
    """
    return await services.commands.command(cast_id, Command.PAUSE, actor)


async def resume_cast(services: ServicesOf, actor: ActorOf, cast_id: CastIdPath) -> Cast:
    """Resume a paused cast."""
    return await services.commands.command(cast_id, Command.RESUME, actor)


async def cancel_cast(
    services: ServicesOf, actor: ActorOf, cast_id: CastIdPath, body: CancelInput | None = None
) -> Cast:
    """Cancel a cast.

    Machines that aren't complete stay marked incomplete.
    """
    reason = body.reason if body is not None else ""
    return await services.commands.command(cast_id, Command.CANCEL, actor, reason)


async def _cast(services: Services, cast_id: str) -> Cast:
    """Return a cast; one that runs here needs no query."""
    cast = await services.live_state.find_cast(cast_id)
    if cast is None:
        raise not_found("cast", cast_id)
    return cast
