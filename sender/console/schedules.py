"""``diskcast schedules``: casts that repeat."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sender.console.options import api_command, list_options
from sender.console.plan import PlanOptions, plan_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output
    from sender.store.records.casts import Schedule
    from sender.store.records.images import Image


@click.group()
def schedules() -> None:
    """Manage schedules, which plan casts repeatedly.

    SCHEDULE is the name or id of a schedule.

    \b
    Examples:
      diskcast schedules create friday lab.dci --room lab-1 --cron "0 22 * * 5"
      diskcast schedules list
      diskcast schedules disable friday
    """  # noqa: D301


@schedules.command("list")
@list_options
@api_command
def list_schedules(client: Client, output: Output, *, limit: int, everything: bool) -> None:
    """List schedules and the time of their next cast.

    \b
    Examples:
      diskcast schedules list
      diskcast schedules list --json
    """  # noqa: D301
    from sender.console.output import Column, local_time
    from sender.store.records.casts import Schedule
    from sender.store.records.images import Image

    names = _image_names(client.listed("/images", Image))
    columns: list[Column[Schedule]] = [
        Column("schedule", lambda schedule: schedule.name, cut=True),
        Column("cron", lambda schedule: schedule.cron),
        Column("zone", lambda schedule: schedule.time_zone, cut=True),
        Column("room", lambda schedule: schedule.plan.room_id or ""),
        Column("image", lambda schedule: _image_text(schedule, names), cut=True),
        Column("next", lambda schedule: local_time(schedule.next_at) if schedule.enabled else "disabled"),
        Column("last cast", lambda schedule: schedule.last_cast_id or ""),
        Column("problem", lambda schedule: schedule.problem, cut=True),
    ]
    output.listed(
        "schedule",
        client.listed("/schedules", Schedule),
        columns,
        limit=None if everything else limit,
        nothing="no schedules: create one with `diskcast schedules create NAME IMAGE --cron …`",
    )


@schedules.command()
@click.argument("name")
@click.option(
    "--cron",
    metavar="'M H D M W'",
    required=True,
    help="Times as in crontab, such as '0 22 * * 5'.",
)
@click.option(
    "--time-zone",
    metavar="ZONE",
    show_default="of this machine",
    help="Time zone of --cron, such as Europe/Berlin.",
)
@click.option("--disabled", is_flag=True, help="Create the schedule disabled.")
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
    """Cast IMAGE repeatedly, at the times of --cron.

    With NAME@latest each cast uses the version that is the newest at the time; any other IMAGE is fixed now.

    \b
    Examples:
      diskcast schedules create friday lab@latest --room lab-1 --cron "0 22 * * 5"
      diskcast schedules create friday lab.dci --room lab-1 --cron "0 22 * * 5"
      diskcast schedules create nightly lab.dci --room lab-1 --cron "0 3 * * *" --time-zone UTC
    """  # noqa: D301
    from sender.console.output import local_time
    from sender.store.records.casts import Schedule
    from sender.store.records.images import Image

    body = {
        "name": name,
        "cron": cron,
        "time_zone": time_zone or own_time_zone(),
        "enabled": not disabled,
        "plan": plan.to_json(client, repeats=True),
    }
    schedule = client.create("/schedules", Schedule, body)
    image = _image_text(schedule, _image_names(client.listed("/images", Image)))
    state = f"next cast at {local_time(schedule.next_at)}" if schedule.next_at else "disabled"
    output.done(f"created schedule {schedule.name} of {image}: {state}", schedule)


@schedules.command()
@click.argument("schedule")
@api_command
def enable(client: Client, output: Output, schedule: str) -> None:
    """Enable a schedule.

    \b
    Examples:
      diskcast schedules enable friday
      diskcast schedules enable friday --json
    """  # noqa: D301
    _switch(client, output, schedule, enabled=True)


@schedules.command()
@click.argument("schedule")
@api_command
def disable(client: Client, output: Output, schedule: str) -> None:
    """Disable a schedule: it is kept, but plans no casts.

    \b
    Examples:
      diskcast schedules disable friday
      diskcast schedules disable friday --json
    """  # noqa: D301
    _switch(client, output, schedule, enabled=False)


@schedules.command()
@click.argument("schedule")
@api_command
def remove(client: Client, output: Output, schedule: str) -> None:
    """Remove a schedule; casts that it planned stay.

    \b
    Examples:
      diskcast schedules remove friday
      diskcast schedules remove friday --json
    """  # noqa: D301
    from sender.console.lookup import find_schedule, path

    found = find_schedule(client, schedule)
    client.remove(path("schedules", found.schedule_id))
    output.done(f"removed schedule {found.name}", schedule_id=found.schedule_id)


def _switch(client: Client, output: Output, text: str, *, enabled: bool) -> None:
    from sender.console.lookup import find_schedule, path
    from sender.console.output import local_time
    from sender.store.records.casts import Schedule

    found = find_schedule(client, text)
    changed = client.change(path("schedules", found.schedule_id), Schedule, {"enabled": enabled})
    state = f"enabled, next cast at {local_time(changed.next_at)}" if changed.enabled else "disabled"
    output.done(f"schedule {changed.name} is {state}", changed)


def _image_names(images: Iterable[Image]) -> dict[str, str]:
    from sender.store.records.images import image_reference

    return {image.image_id: image_reference(image) for image in images}


def _image_text(schedule: Schedule, names: Mapping[str, str]) -> str:
    if schedule.plan.latest_of:
        return f"{schedule.plan.latest_of}@latest"
    return names.get(schedule.plan.image_id, schedule.plan.image_id)


def own_time_zone(localtime: Path = Path("/etc/localtime")) -> str:
    """Return the IANA name of this machine's time zone, UTC if it has none."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if "/" in named and not named.startswith("/"):
        return named
    _, found, zone = str(localtime.resolve()).partition("/zoneinfo/")
    return zone if found else "UTC"
