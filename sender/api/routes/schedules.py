"""Schedules: casts that are planned repeatedly."""

from __future__ import annotations

import dataclasses
import secrets
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.bodies.responses import Page
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.request_models.schedules import ScheduleChange, ScheduleInput
from sender.api.routes.parameters import ScheduleIdPath
from sender.api.routes.plans import plan_of
from sender.daemon.context import Services
from sender.daemon.scheduler import next_time
from sender.refusals import not_found
from sender.store.records.casts import Schedule


async def list_schedules(
    services: ServicesOf, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[Schedule]:
    """List schedules, by name."""
    items, next_cursor = await services.store.run(services.store.schedules.list, after=cursor, limit=limit)
    return Page(items=items, next_cursor=next_cursor)


async def add_schedule(services: ServicesOf, actor: ActorOf, body: ScheduleInput) -> Schedule:
    """Add a schedule, which plans a cast repeatedly."""
    schedule = Schedule(
        schedule_id=secrets.token_hex(4),
        name=body.name,
        cron=body.cron,
        time_zone=body.time_zone,
        plan=plan_of(services, body.plan, repeats=True),
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
    """Change the given fields of a schedule.

    Its next time is computed again.
    """
    before = await _schedule(services, schedule_id)
    given: dict[str, Any] = body.given()
    if "plan" in given:
        given["plan"] = plan_of(services, body.plan, repeats=True)
    after = dataclasses.replace(before, **given)
    given["next_at"] = next_time(after.cron, after.time_zone, datetime.now(UTC)) if after.enabled else None
    schedule = await services.store.run(
        services.store.schedules.change, schedule_id, audit=actor.note(), **given
    )
    if schedule is None:
        raise not_found("schedule", schedule_id)
    return schedule


async def remove_schedule(services: ServicesOf, actor: ActorOf, schedule_id: ScheduleIdPath) -> Response:
    """Remove a schedule.

    Casts that it has planned stay.
    """
    if not await services.store.run(services.store.schedules.remove, schedule_id, audit=actor.note()):
        raise not_found("schedule", schedule_id)
    return Response(status_code=204)


async def _schedule(services: Services, schedule_id: str) -> Schedule:
    schedule: Schedule | None = await services.store.run(services.store.schedules.get, schedule_id)
    if schedule is None:
        raise not_found("schedule", schedule_id)
    return schedule
