"""``diskcast casts``: plan them, steer them, watch them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from protocol.errors import ConfigurationError
from protocol.shared.units import format_bytes, format_duration, format_rate
from sender.console.options import api_command, checked_cast, checked_room, list_options
from sender.console.plan import PlanOptions, plan_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output
    from sender.store.records.casts import Cast, CastMachine
    from sender.store.records.live import LiveMachine

PHASES = ("planned", "gathering", "casting", "tail", "done", "failed", "cancelled")
"""As :class:`sender.store.records.casts.CastPhase`; a test compares."""


@click.group()
def casts() -> None:
    """Casts: one image to a room of machines.

    CAST is a cast's id, eight hexadecimal digits.
    """


@casts.command("list")
@click.option("--phase", type=click.Choice(PHASES), help="Only casts that are there now.")
@click.option("--room", "room_id", metavar="ROOM", callback=checked_room, help="Only this room's.")
@list_options
@api_command
def list_casts(
    client: Client, output: Output, *, phase: str | None, room_id: str | None, limit: int, everything: bool
) -> None:
    """List casts, the newest first."""
    from sender.console.output import Column, local_time
    from sender.store.records.casts import Cast

    columns: list[Column[Cast]] = [
        Column("cast", lambda cast: cast.cast_id),
        Column("image", lambda cast: cast.image_name, cut=True),
        Column("room", lambda cast: cast.plan.room_id or ""),
        Column("phase", lambda cast: "paused" if cast.paused else cast.phase.value),
        Column("", lambda cast: f"{cast.progress:.0%}" if cast.phase.live else "", right=True),
        Column("complete", lambda cast: f"{cast.complete_count}/{cast.required_count}", right=True),
        Column("failed", lambda cast: str(cast.failed_count or ""), right=True),
        Column("created", lambda cast: local_time(cast.created_at)),
    ]
    output.listed(
        "cast",
        client.listed("/casts", Cast, {"phase": phase, "room_id": room_id}),
        columns,
        limit=None if everything else limit,
        nothing="no casts: `diskcast casts create IMAGE --room ROOM` plans one",
    )


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@api_command
def show(client: Client, output: Output, cast_id: str) -> None:
    """Show one cast.

    What was asked for, how far it is, how it ended.
    """
    from sender.console.lookup import path
    from sender.store.records.live import LiveCast

    live = client.get(path("casts", cast_id), LiveCast)
    output.record(
        live.cast if not output.json_lines else live,
        [
            *_fields(live.cast),
            ("rate", format_rate(live.achieved_bytes_per_s) if live.cast.phase.live else ""),
            ("limited by", live.bottleneck),
            ("to go", "" if live.eta_s is None else format_duration(live.eta_s)),
        ],
    )


@casts.command()
@click.option("--name", metavar="NAME", default="", help="For people, for example 'Windows for the exam'.")
@click.option(
    "--at", "start_at", metavar="TIME", help="Begin then: 22:00, 2026-11-21T22:00 or 2026-11-21T22:00+01:00."
)
@click.option("--in", "start_in", metavar="TIME", help="Begin after this time, for example 10m.")
@click.option("--watch", is_flag=True, help="Go on as `diskcast casts watch`.")
@plan_options
@api_command
def create(
    client: Client,
    output: Output,
    *,
    plan: PlanOptions,
    name: str,
    start_at: str | None,
    start_in: str | None,
    watch: bool,
) -> int:
    """Plan a cast of an image to machines.

    IMAGE is a name, the name of its file, or an id.
    Machines whose agent waits (`diskcast-agent run`) join by themselves.

    \b
    Examples:
      diskcast casts create lab.dci --room lab-1 --watch
      diskcast casts create lab.dci --room lab-1 --at 22:00 --max-wait 15m --rate 400M
      diskcast casts create lab.dci --machine pc07 --machine pc08
    """  # noqa: D301
    from datetime import UTC, datetime

    from sender.console.client import to_json as json_of
    from sender.console.output import emit, local_time
    from sender.console.time_parsing import parse_in, parse_start
    from sender.console.watch import watch_cast
    from sender.store.records.casts import Cast

    if start_at is not None and start_in is not None:
        raise ConfigurationError("--at and --in both say when to begin: leave one of the two out")
    now = datetime.now(UTC)
    begins = None
    if start_at is not None:
        begins = parse_start(start_at, now)
    elif start_in is not None:
        begins = parse_in(start_in, now)
    body = plan.to_json(client) | {"name": name, "start_at": None if begins is None else begins.isoformat()}
    cast = client.create("/casts", Cast, body)
    if watch:
        if output.json_lines:
            emit("cast_created", **json_of(cast))
        return watch_cast(client, output, cast.cast_id)
    when = f" at {local_time(begins)}" if begins is not None else ""
    output.done(
        f"cast {cast.cast_id} of {cast.image_name} is planned{when}: `diskcast casts watch {cast.cast_id}` shows it",
        cast,
    )
    return 0


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@api_command
def start(client: Client, output: Output, cast_id: str) -> None:
    """Begin now, with those that have joined."""
    _command(client, output, cast_id, "start", "begins")


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@api_command
def pause(client: Client, output: Output, cast_id: str) -> None:
    """Stop the data, keep the room.

    `diskcast casts resume` goes on.
    """
    _command(client, output, cast_id, "pause", "is paused")


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@api_command
def resume(client: Client, output: Output, cast_id: str) -> None:
    """Go on with a paused cast."""
    _command(client, output, cast_id, "resume", "goes on")


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@click.option("--reason", metavar="TEXT", help="What history and the machines are told.")
@api_command
def cancel(client: Client, output: Output, cast_id: str, *, reason: str | None) -> None:
    """End a cast.

    Machines that aren't complete stay marked as incomplete, and won't boot.
    """
    _command(client, output, cast_id, "cancel", "is cancelled", {"reason": reason} if reason else {})


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@api_command
def watch(client: Client, output: Output, cast_id: str) -> int:
    """Watch a cast until it ends.

    Watching outlives restarts of the daemon. Exit code 0 only if the cast is done: every machine that was asked for
    verified every byte. Ctrl-C ends the watching, not the cast.
    """
    from sender.console.watch import watch_cast

    return watch_cast(client, output, cast_id)


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@list_options
@api_command
def machines(client: Client, output: Output, cast_id: str, *, limit: int, everything: bool) -> None:
    """Show what each machine got.

    Those that aren't complete first, with the reason.
    """
    from sender.console.live_records import CastNow
    from sender.console.lookup import path
    from sender.console.tables import print_cast_machines
    from sender.store.records.casts import CastMachine

    now = client.get(path("casts", cast_id, "live"), CastNow)
    found: Iterable[CastMachine] = client.listed(path("casts", cast_id, "machines"), CastMachine)
    if not now.cast.phase.ended:
        found = _as_now(found, now.machines)
    print_cast_machines(output, found, limit=None if everything else limit)


def _as_now(found: Iterable[CastMachine], machines: Iterable[LiveMachine]) -> Iterator[CastMachine]:
    """While a cast runs its record is seconds to minutes old: what its sender says counts."""
    live = {machine.machine_id or machine.name: machine for machine in machines}
    for machine in found:
        now = live.get(machine.machine_id or machine.name)
        if now is None:
            yield machine
        else:
            yield dataclasses.replace(
                machine,
                state=now.state,
                progress=now.progress,
                rate_bytes_per_s=now.rate_bytes_per_s,
                loss=now.loss,
                bottleneck=now.bottleneck,
                error=now.error or machine.error,
            )


def _command(
    client: Client,
    output: Output,
    cast_id: str,
    command: str,
    done: str,
    body: dict[str, object] | None = None,
) -> None:
    from sender.console.lookup import path
    from sender.store.records.casts import Cast

    cast = client.order(path("casts", cast_id, command), Cast, body)
    output.done(f"cast {cast.cast_id} of {cast.image_name} {done}", cast)


def _fields(cast: Cast) -> list[tuple[str, str]]:
    from sender.console.output import local_time

    plan = cast.plan
    machines = (
        f"{cast.joined_count} joined, {cast.complete_count} complete, {cast.failed_count} failed, "
        f"{cast.required_count} asked for"
    )
    return [
        ("cast", cast.cast_id),
        ("name", plan.name),
        ("image", f"{cast.image_name} ({format_bytes(cast.raw_bytes)})"),
        ("room", plan.room_id or ""),
        ("phase", "paused" if cast.paused else cast.phase.value),
        ("reason", cast.reason),
        ("progress", f"{cast.progress:.1%}"),
        ("machines", machines),
        ("begins at", local_time(plan.start_at)),
        ("begins by", "diskcast casts start" if plan.start.value == "manual" else ""),
        ("created", f"{local_time(cast.created_at)} by {cast.created_by}"),
        ("began", local_time(cast.casting_at)),
        ("ended", local_time(cast.ended_at)),
        ("took", format_duration(cast.seconds) if cast.seconds else ""),
        ("sent", format_bytes(cast.bytes_sent) if cast.bytes_sent else ""),
        ("daemon", cast.owner + (f" (run {cast.run_count})" if cast.run_count > 1 else "")),
        ("group", f"{cast.group} port {cast.port}" if cast.group else ""),
    ]
