"""``diskcast schedules``: casts that are planned again and again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sender.console.options import api_command, list_options
from sender.console.plan import PlanOptions, plan_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output


@click.group()
def schedules() -> None:
    """Casts that are planned again and again.

    SCHEDULE is a name or an id.
    """


@schedules.command("list")
@list_options
@api_command
def list_schedules(client: Client, output: Output, *, limit: int, everything: bool) -> None:
    """List schedules and when each comes next."""
    from sender.console.output import Column, local_time
    from sender.store.records.casts import Schedule
    from sender.store.records.images import Image

    names = {image.image_id: image.name for image in client.listed("/images", Image)}
    columns: list[Column[Schedule]] = [
        Column("schedule", lambda schedule: schedule.name, cut=True),
        Column("cron", lambda schedule: schedule.cron),
        Column("zone", lambda schedule: schedule.time_zone, cut=True),
        Column("room", lambda schedule: schedule.plan.room_id or ""),
        Column("image", lambda schedule: names.get(schedule.plan.image_id, schedule.plan.image_id), cut=True),
        Column("next", lambda schedule: local_time(schedule.next_at) if schedule.enabled else "disabled"),
        Column("last cast", lambda schedule: schedule.last_cast_id or ""),
        Column("problem", lambda schedule: schedule.problem, cut=True),
    ]
    output.listed(
        "schedule",
        client.listed("/schedules", Schedule),
        columns,
        limit=None if everything else limit,
        nothing="no schedules: `diskcast schedules create NAME IMAGE --cron …` makes one",
    )


@schedules.command()
@click.argument("name")
@click.option("--cron", metavar="'M H D M W'", required=True, help="Five fields as in crontab: '0 22 * * 5'.")
@click.option(
    "--time-zone",
    metavar="ZONE",
    help="In which --cron is read, for example Europe/Berlin.  [default: this machine's]",
)
@click.option("--disabled", is_flag=True, help="Don't let it begin yet.")
@plan_options
@api_command
def create(
    client: Client,
    output: Output,
    *,
    name: str,
    cron: str,
    time_zone: str | None,
    disabled: bool,
    plan: PlanOptions,
) -> None:
    """Cast IMAGE to a room again and again.

    Example: diskcast schedules create friday lab.dci --room lab-1 --cron "0 22 * * 5"
    """
    from sender.console.output import local_time
    from sender.store.records.casts import Schedule

    body = {
        "name": name,
        "cron": cron,
        "time_zone": time_zone or own_time_zone(),
        "enabled": not disabled,
        "plan": plan.to_json(client),
    }
    schedule = client.create("/schedules", Schedule, body)
    comes = f"next on {local_time(schedule.next_at)}" if schedule.next_at else "not enabled"
    output.done(f"schedule {schedule.name} is there, {comes}", schedule)


@schedules.command()
@click.argument("schedule")
@api_command
def enable(client: Client, output: Output, schedule: str) -> None:
    """Let a schedule plan casts."""
    _switch(client, output, schedule, enabled=True)


@schedules.command()
@click.argument("schedule")
@api_command
def disable(client: Client, output: Output, schedule: str) -> None:
    """Keep a schedule, but let it plan nothing."""
    _switch(client, output, schedule, enabled=False)


@schedules.command()
@click.argument("schedule")
@api_command
def remove(client: Client, output: Output, schedule: str) -> None:
    """Remove a schedule. Casts that it planned already stay."""
    from sender.console.lookup import find_schedule, path

    found = find_schedule(client, schedule)
    client.remove(path("schedules", found.schedule_id))
    output.done(f"schedule {found.name} is removed", schedule_id=found.schedule_id)


def _switch(client: Client, output: Output, text: str, *, enabled: bool) -> None:
    from sender.console.lookup import find_schedule, path
    from sender.console.output import local_time
    from sender.store.records.casts import Schedule

    found = find_schedule(client, text)
    changed = client.change(path("schedules", found.schedule_id), Schedule, {"enabled": enabled})
    comes = f"enabled, next on {local_time(changed.next_at)}" if changed.enabled else "disabled"
    output.done(f"schedule {changed.name} is {comes}", changed)


def own_time_zone(localtime: Path = Path("/etc/localtime")) -> str:
    """This machine's time zone by its IANA name, UTC if it has none."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if "/" in named and not named.startswith("/"):
        return named
    _, found, zone = str(localtime.resolve()).partition("/zoneinfo/")
    return zone if found else "UTC"
