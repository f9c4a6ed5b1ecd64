"""Plan scheduled casts when they are due, and remove old history."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import structlog
from cronsim import CronSim, CronSimError

from protocol.errors import DatabaseError
from sender.actors import Actor
from sender.daemon.cast_commands import CastCommands
from sender.library.library import Library
from sender.refusals import RequestRefusedError, invalid
from sender.store.records.casts import Schedule
from sender.store.records.images import LATEST
from sender.store.store import Store

POLL_S: Final = 5.0
"""Polling interval: cron's unit is a minute, so a delay of five seconds doesn't matter."""
LATE_S_MAX: Final = 3600.0
"""A cast that is later than this, because no daemon ran, is skipped: by now its room may be in use."""
_RETENTION_S: Final = 6 * 3600.0

_log = structlog.get_logger(__name__)


def next_time(cron: str, time_zone: str, after: datetime) -> datetime:
    """Return the next time of a schedule, in UTC.

    Raises:
        RequestRefusedError: the expression or time zone is invalid.
    """
    try:
        return next(CronSim(cron, after.astimezone(ZoneInfo(time_zone)))).astimezone(UTC)
    except (CronSimError, ZoneInfoNotFoundError, ValueError, StopIteration) as error:
        raise invalid(f"{cron!r} in {time_zone!r} isn't a schedule: {error}") from error


async def run_schedules(store: Store, library: Library, commands: CastCommands) -> None:
    """Plan the casts of schedules that are due, until cancelled. Of several daemons, one plans each."""
    while True:
        try:
            for schedule in await store.run(store.schedules.due, datetime.now(UTC)):
                await plan_due(store, library, commands, schedule)
        except DatabaseError as error:
            _log.warning("schedules_waiting", error=str(error))
        await asyncio.sleep(POLL_S)


async def plan_due(store: Store, library: Library, commands: CastCommands, schedule: Schedule) -> None:
    """Plan the cast of a schedule that is due, and record the time of the next one."""
    now = datetime.now(UTC)
    try:
        following = next_time(schedule.cron, schedule.time_zone, now)
    except RequestRefusedError as error:
        await store.run(store.schedules.change, schedule.schedule_id, enabled=False, problem=str(error))
        return
    if not await store.run(store.schedules.claim, schedule.schedule_id, schedule.next_at, following):
        return  # another daemon was faster
    late_s = (now - (schedule.next_at or now)).total_seconds()
    if late_s > LATE_S_MAX:
        problem = f"skipped at {schedule.next_at:%Y-%m-%d %H:%M} UTC: no daemon was running"
        _log.warning("schedule_skipped", schedule=schedule.name, late_s=round(late_s))
        await store.run(store.schedules.change, schedule.schedule_id, problem=problem)
        return
    plan = dataclasses.replace(schedule.plan, start_at=None, name=schedule.plan.name or schedule.name)
    try:
        if plan.latest_of:
            newest = library.resolve(f"{plan.latest_of}@{LATEST}")
            plan = dataclasses.replace(plan, image_id=newest.image_id, latest_of="")
        cast = await commands.create(
            plan, Actor(f"schedule {schedule.name}"), schedule_id=schedule.schedule_id
        )
    except RequestRefusedError as error:
        _log.error("schedule_failed", schedule=schedule.name, error=str(error))
        await store.run(store.schedules.change, schedule.schedule_id, problem=str(error))
        return
    await store.run(store.schedules.change, schedule.schedule_id, last_cast_id=cast.cast_id, problem="")


async def run_retention(store: Store, days: int | None) -> None:
    """Remove history older than ``days``, now and a few times a day, until cancelled; None: keep everything."""
    while days is not None:
        try:
            removed = await store.run(store.retention.apply, days)
            if removed.casts_count or removed.audit_count:
                _log.info("history_removed", days=days, casts=removed.casts_count, audit=removed.audit_count)
            if removed.unfinished:
                continue
        except DatabaseError as error:
            _log.warning("history_not_removed", error=str(error))
        await asyncio.sleep(_RETENTION_S)
