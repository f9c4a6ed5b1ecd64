"""Casts and schedules of casts."""

from __future__ import annotations

import dataclasses
import secrets
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Path, Query
from starlette.responses import Response

from sender.api.guarded_route import ActorOf, ServicesOf
from sender.api.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.request_models import (
    CAST_ID_PATTERN,
    PLAIN_ID_PATTERN,
    CancelInput,
    CastInput,
    PlanInput,
    ScheduleChange,
    ScheduleInput,
)
from sender.api.responses import CastLive, CastTimeline, Page
from sender.api.routes.rooms import RoomFilter
from sender.daemon.context import Services
from sender.daemon.scheduler import next_time
from sender.refusals import RequestRefusedError, invalid, not_found
from sender.store.records.casts import Cast, CastMachine, CastPhase, CastPlan, Command, Schedule, StartMode
from sender.store.records.live import LiveCast

CastIdPath = Annotated[str, Path(pattern=CAST_ID_PATTERN, examples=["1a2b3c4d"])]
ScheduleIdPath = Annotated[str, Path(pattern=PLAIN_ID_PATTERN, max_length=64)]


async def list_casts(
    services: ServicesOf,
    phase: Annotated[CastPhase | None, Query(description="Only those in this phase.")] = None,
    room_id: RoomFilter = None,
    limit: Limit = LIMIT_DEFAULT,
    cursor: Cursor = None,
) -> Page[Cast]:
    """List casts, the newest first."""
    casts: list[Cast] = []
    while True:
        items, cursor = await services.store.run(
            services.store.casts.list,
            phase=phase,
            room_id=room_id,
            after=cursor,
            limit=limit - len(casts),
            phases_now=services.supervisor.phases_now(),
        )
        # One that has moved on while the database was asked isn't in this phase any more; the next takes its place.
        casts += [cast for cast in map(services.supervisor.cast_now, items) if phase in (None, cast.phase)]
        if cursor is None or len(casts) == limit:
            return Page(items=casts, next_cursor=cursor)


async def add_cast(services: ServicesOf, actor: ActorOf, body: CastInput) -> Cast:
    """Plan a cast; it begins as soon as its time has come and a daemon is free."""
    plan = dataclasses.replace(_plan(services, body), start_at=body.start_at)
    return await services.steering.create(plan, actor)


async def get_cast(services: ServicesOf, cast_id: CastIdPath) -> LiveCast:
    """Show a cast as it is now."""
    return services.rooms_now.live(await _cast(services, cast_id))


async def list_cast_machines(services: ServicesOf, cast_id: CastIdPath) -> Page[CastMachine]:
    """List what a cast did to each machine, on one page."""
    await _cast(services, cast_id)
    items = await services.store.run(services.store.casts.machines, cast_id)
    return Page(items=items, next_cursor=None)


async def watch_cast(services: ServicesOf, cast_id: CastIdPath) -> CastLive:
    """Show a cast and its machines as they are now."""
    cast = await _cast(services, cast_id)
    return CastLive(live=services.rooms_now.live(cast), machines=await services.rooms_now.cast_machines(cast))


async def get_cast_timeline(services: ServicesOf, cast_id: CastIdPath) -> CastTimeline:
    """Show a cast's charts and what happened in it."""
    await _cast(services, cast_id)
    points, events = await services.timeline(cast_id)
    return CastTimeline(points=points, events=events)


async def start_cast(services: ServicesOf, actor: ActorOf, cast_id: CastIdPath) -> Cast:
    """Begin the data with the machines that have joined."""
    return await services.steering.command(cast_id, Command.START, actor)


async def pause_cast(services: ServicesOf, actor: ActorOf, cast_id: CastIdPath) -> Cast:
    """Pause a cast; its machines wait."""
    return await services.steering.command(cast_id, Command.PAUSE, actor)


async def resume_cast(services: ServicesOf, actor: ActorOf, cast_id: CastIdPath) -> Cast:
    """Let a paused cast go on."""
    return await services.steering.command(cast_id, Command.RESUME, actor)


async def cancel_cast(
    services: ServicesOf, actor: ActorOf, cast_id: CastIdPath, body: CancelInput | None = None
) -> Cast:
    """Cancel a cast; machines that aren't complete stay marked incomplete."""
    reason = body.reason if body is not None else ""
    return await services.steering.command(cast_id, Command.CANCEL, actor, reason)


async def list_schedules(
    services: ServicesOf, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[Schedule]:
    """List schedules, by name."""
    items, next_cursor = await services.store.run(services.store.schedules.list, after=cursor, limit=limit)
    return Page(items=items, next_cursor=next_cursor)


async def add_schedule(services: ServicesOf, actor: ActorOf, body: ScheduleInput) -> Schedule:
    """Plan a cast again and again."""
    schedule = Schedule(
        schedule_id=secrets.token_hex(4),
        name=body.name,
        cron=body.cron,
        time_zone=body.time_zone,
        plan=_plan(services, body.plan),
        enabled=body.enabled,
        created_at=datetime.now(UTC),
        next_at=next_time(body.cron, body.time_zone, datetime.now(UTC)) if body.enabled else None,
        last_cast_id=None,
    )
    return await services.store.run(services.store.schedules.add, schedule, audit=actor.note())


async def get_schedule(services: ServicesOf, schedule_id: ScheduleIdPath) -> Schedule:
    """Show a schedule."""
    return await _schedule(services, schedule_id)


async def change_schedule(
    services: ServicesOf, actor: ActorOf, schedule_id: ScheduleIdPath, body: ScheduleChange
) -> Schedule:
    """Change what is given of a schedule; its next time is worked out anew."""
    before = await _schedule(services, schedule_id)
    given: dict[str, Any] = body.given()
    if "plan" in given:
        given["plan"] = _plan(services, body.plan)
    after = dataclasses.replace(before, **given)
    given["next_at"] = next_time(after.cron, after.time_zone, datetime.now(UTC)) if after.enabled else None
    schedule = await services.store.run(
        services.store.schedules.change, schedule_id, audit=actor.note(), **given
    )
    if schedule is None:
        raise not_found("schedule", schedule_id)
    return schedule


async def remove_schedule(services: ServicesOf, actor: ActorOf, schedule_id: ScheduleIdPath) -> Response:
    """Remove a schedule; casts that it has planned stay."""
    if not await services.store.run(services.store.schedules.remove, schedule_id, audit=actor.note()):
        raise not_found("schedule", schedule_id)
    return Response(status_code=204)


def _plan(services: Services, body: PlanInput) -> CastPlan:
    """The plan of a body, its image found in the library."""
    try:
        image = services.library.resolve(body.image)
    except RequestRefusedError as error:
        if error.status is HTTPStatus.NOT_FOUND:
            raise invalid(error) from error  # it's the body that names nothing, not the path
        raise
    return CastPlan(
        image_id=image.image_id,
        room_id=body.room_id,
        machine_ids=tuple(dict.fromkeys(body.machine_ids)),
        name=body.name,
        start=StartMode(body.start),
        wait_for=body.wait_for,
        max_wait_s=body.max_wait_s,
        rate_bytes_per_s=body.rate_bytes_per_s,
        rate_max_bytes_per_s=body.rate_max_bytes_per_s,
        share=body.share,
        slow=body.slow,
        slow_below=body.slow_below,
        slow_for_s=body.slow_for_s,
    )


async def _cast(services: Services, cast_id: str) -> Cast:
    """A cast; one that runs here is known without the database."""
    cast = await services.find_cast(cast_id)
    if cast is None:
        raise not_found("cast", cast_id)
    return cast


async def _schedule(services: Services, schedule_id: str) -> Schedule:
    schedule: Schedule | None = await services.store.run(services.store.schedules.get, schedule_id)
    if schedule is None:
        raise not_found("schedule", schedule_id)
    return schedule
