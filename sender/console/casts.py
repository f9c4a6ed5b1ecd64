"""``diskcast casts``: plan, control and watch casts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from protocol.errors import ConfigurationError
from protocol.shared.units import format_bytes, format_duration, format_rate
from sender.console.options import api_command, checked_cast, checked_room, list_options
from sender.console.plan import PlanOptions, machine_ids_of, plan_options
from sender.console.preflight import ask_preflight, preflight, require_consent

if TYPE_CHECKING:
    from rich.text import Text

    from sender.console.client import Client
    from sender.console.output import Output
    from sender.store.records.casts import Cast, CastMachine
    from sender.store.records.live import LiveMachine

PHASES = ("planned", "gathering", "casting", "tail", "done", "failed", "cancelled")
"""The values of ``CastPhase``, so that ``--help`` needs no import; a test compares them."""


@click.group()
def casts() -> None:
    """Plan, control and watch casts of images to machines.

    CAST is the id of a cast: eight hexadecimal digits, as `diskcast casts list` shows them.
    A cast is planned, gathers its machines, casts, finishes stragglers, and ends as done, failed or cancelled.

    \b
    Examples:
      diskcast casts create lab.dci --room lab-1 --watch
      diskcast casts preflight --image lab.dci --room lab-1
      diskcast casts list --phase casting
      diskcast casts machines 1a2b3c4d
    """  # noqa: D301


casts.add_command(preflight)


@casts.command("list")
@click.option("--phase", type=click.Choice(PHASES), help="Only casts in this phase.")
@click.option("--room", "room_id", metavar="ROOM", callback=checked_room, help="Only casts of this room.")
@list_options
@api_command
def list_casts(
    client: Client, output: Output, *, phase: str | None, room_id: str | None, limit: int, everything: bool
) -> None:
    """List casts, the newest first.

    \b
    Examples:
      diskcast casts list
      diskcast casts list --phase failed --limit 200
      diskcast casts list --room lab-1 --json
    """  # noqa: D301
    from sender.console.output import Column, local_time, state_text
    from sender.labels import cast_label
    from sender.store.records.casts import Cast

    columns: list[Column[Cast]] = [
        Column("cast", lambda cast: cast.cast_id),
        Column("image", lambda cast: cast.image_name, cut=True),
        Column("room", lambda cast: cast.plan.room_id or ""),
        Column("phase", lambda cast: state_text(cast_label(cast.phase, paused=cast.paused))),
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
        nothing="no casts: plan one with `diskcast casts create IMAGE --room ROOM`",
    )


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@api_command
def show(client: Client, output: Output, cast_id: str) -> None:
    """Show a cast: its plan, its progress and how it ended.

    \b
    Examples:
      diskcast casts show 1a2b3c4d
      diskcast casts show 1a2b3c4d --json
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.store.records.live import LiveCast

    live = client.get(path("casts", cast_id), LiveCast)
    output.record(
        live.cast if not output.json_lines else live,
        [
            *_fields(live.cast),
            ("rate", format_rate(live.achieved_bytes_per_s) if live.cast.phase.live else ""),
            ("bottleneck", live.bottleneck),
            ("ETA", "" if live.eta_s is None else format_duration(live.eta_s)),
        ],
    )


@casts.command()
@click.option("--name", metavar="NAME", default="", help="Name of the cast, such as 'Windows for the exam'.")
@click.option(
    "--at", "start_at", metavar="TIME", help="Start at 22:00, 2026-11-21T22:00 or 2026-11-21T22:00+01:00."
)
@click.option("--in", "start_in", metavar="TIME", help="Start after this time, such as 10m.")
@click.option("--watch", is_flag=True, help="Watch the cast until it ends, as `diskcast casts watch` does.")
@click.option("--accept-warnings", is_flag=True, help="Cast also to machines with warnings of the preflight.")
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
    accept_warnings: bool,
) -> int:
    """Plan a cast of an image to machines.

    IMAGE is the name of an image, its file name or its id. Machines with a waiting agent (`diskcast-agent run`)
    join automatically. Machines that don't fit the image are excluded, see `diskcast casts preflight`.

    \b
    Examples:
      diskcast casts create lab.dci --room lab-1 --watch
      diskcast casts create lab.dci --room lab-1 --at 22:00 --max-wait 15m --rate 400M
      diskcast casts create lab.dci --machine pc07 --machine pc08
    """  # noqa: D301
    from datetime import UTC, datetime

    from sender.console.client import to_json as json_of
    from sender.console.image_upkeep import warn_of_clones
    from sender.console.output import emit, local_time
    from sender.console.time_parsing import parse_in, parse_start
    from sender.console.watch import watch_cast
    from sender.store.records.casts import Cast

    if start_at is not None and start_in is not None:
        raise ConfigurationError("--at and --in both set the start time: leave one of them out")
    now = datetime.now(UTC)
    start_time = None
    if start_at is not None:
        start_time = parse_start(start_at, now)
    elif start_in is not None:
        start_time = parse_in(start_in, now)
    body = plan.to_json(client) | {
        "name": name,
        "start_at": None if start_time is None else start_time.isoformat(),
    }
    warn_of_clones(client, output, str(body["image"]))
    if plan.room_id is not None or plan.machines:
        machine_ids = machine_ids_of(body)
        found = ask_preflight(client, str(body["image"]), plan.room_id, machine_ids)
        require_consent(found, output, accept_warnings=accept_warnings)
    cast = client.create("/casts", Cast, body)
    if watch:
        if output.json_lines:
            emit("cast_created", **json_of(cast))
        return watch_cast(client, output, cast.cast_id)
    when = f" for {local_time(start_time)}" if start_time is not None else ""
    output.done(
        f"cast {cast.cast_id} of {cast.image_name} is planned{when}: "
        f"watch it with `diskcast casts watch {cast.cast_id}`",
        cast,
    )
    return 0


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@api_command
def start(client: Client, output: Output, cast_id: str) -> None:
    """Start casting now, with the machines that have joined.

    \b
    Examples:
      diskcast casts start 1a2b3c4d
      diskcast casts start 1a2b3c4d --json
    """  # noqa: D301
    _command(client, output, cast_id, "start", "starts")


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@api_command
def pause(client: Client, output: Output, cast_id: str) -> None:
    """Pause a cast: its machines wait until `diskcast casts resume`.

    \b
    Examples:
      diskcast casts pause 1a2b3c4d
      diskcast casts pause 1a2b3c4d --json
    """  # noqa: D301
    _command(client, output, cast_id, "pause", "is paused")


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@api_command
def resume(client: Client, output: Output, cast_id: str) -> None:
    """Resume a paused cast.

    \b
    Examples:
      diskcast casts resume 1a2b3c4d
      diskcast casts resume 1a2b3c4d --json
    """  # noqa: D301
    _command(client, output, cast_id, "resume", "resumes")


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@click.option("--reason", metavar="TEXT", help="Reason to show in history and on the machines.")
@api_command
def cancel(client: Client, output: Output, cast_id: str, *, reason: str | None) -> None:
    """Cancel a cast.

    Machines that aren't complete stay marked as incomplete and won't boot.

    \b
    Examples:
      diskcast casts cancel 1a2b3c4d
      diskcast casts cancel 1a2b3c4d --reason "wrong image"
    """  # noqa: D301
    _command(client, output, cast_id, "cancel", "is cancelled", {"reason": reason} if reason else {})


@casts.command()
@click.argument("cast_id", metavar="[CAST]", required=False, callback=checked_cast)
@api_command
def watch(client: Client, output: Output, cast_id: str | None) -> int:
    """Watch a cast until it ends; without CAST, the one that is running.

    Watching continues through restarts of the daemon. Exits with 0 only if the cast is done: every required machine
    verified every byte. Ctrl-C stops watching; the cast continues.

    \b
    Examples:
      diskcast casts watch
      diskcast casts watch 1a2b3c4d --json
    """  # noqa: D301
    from sender.console.lookup import find_running_cast
    from sender.console.watch import watch_cast

    return watch_cast(client, output, cast_id or find_running_cast(client).cast_id)


@casts.command()
@click.argument("cast_id", metavar="CAST", callback=checked_cast)
@list_options
@api_command
def machines(client: Client, output: Output, cast_id: str, *, limit: int, everything: bool) -> None:
    """List the machines of a cast with their results.

    Machines that aren't complete come first, with the reason.

    \b
    Examples:
      diskcast casts machines 1a2b3c4d
      diskcast casts machines 1a2b3c4d --all --json
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.console.tables import print_cast_machines
    from sender.store.records.casts import CastMachine
    from sender.store.records.live import CastLive

    now = client.get(path("casts", cast_id, "live"), CastLive)
    found: Iterable[CastMachine] = client.listed(path("casts", cast_id, "machines"), CastMachine)
    if not now.live.cast.phase.ended:
        found = _with_live_states(found, now.machines)
    print_cast_machines(output, found, limit=None if everything else limit)


def _with_live_states(found: Iterable[CastMachine], machines: Iterable[LiveMachine]) -> Iterator[CastMachine]:
    """Replace the state of each machine by its live state: records of a running cast are up to minutes old."""
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


def _fields(cast: Cast) -> list[tuple[str, str | Text]]:
    from sender.console.output import local_time, state_text
    from sender.labels import cast_label

    plan = cast.plan
    machines = (
        f"{cast.joined_count} joined, {cast.complete_count} complete, {cast.failed_count} failed, "
        f"{cast.required_count} required"
    )
    return [
        ("cast", cast.cast_id),
        ("name", plan.name),
        ("image", f"{cast.image_name} ({format_bytes(cast.raw_bytes)})"),
        ("room", plan.room_id or ""),
        ("phase", state_text(cast_label(cast.phase, paused=cast.paused))),
        ("reason", cast.reason),
        ("progress", f"{cast.progress:.1%}"),
        ("machines", machines),
        ("starts at", local_time(plan.start_at)),
        ("starts by", "diskcast casts start" if plan.start.value == "manual" else ""),
        ("created", f"{local_time(cast.created_at)} by {cast.created_by}"),
        ("started", local_time(cast.casting_at)),
        ("ended", local_time(cast.ended_at)),
        ("took", format_duration(cast.seconds) if cast.seconds else ""),
        ("sent", format_bytes(cast.bytes_sent) if cast.bytes_sent else ""),
        ("daemon", cast.owner + (f" (run {cast.run_count})" if cast.run_count > 1 else "")),
        ("group", f"{cast.group} port {cast.port}" if cast.group else ""),
    ]
