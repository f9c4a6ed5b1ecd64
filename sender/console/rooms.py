"""``diskcast rooms``: named sets of machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from protocol.constants import RECEIVER_COUNT_MAX
from protocol.errors import ConfigurationError, ServerRefusedError
from protocol.shared.units import parse_duration_s
from sender.console.options import api_command, checked_room, list_options
from sender.console.patch_inputs import patch_set, template

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output

_CSV_BYTES_MAX: Final = 4 << 20
"""Tens of thousands of machines, at about 100 bytes per line."""


@click.group()
def rooms() -> None:
    """Manage rooms, which are named sets of machines.

    ROOM is the id of a room: lower case letters, digits and hyphens.

    \b
    Examples:
      diskcast rooms create lab-1 --name "Lab 1"
      diskcast rooms import lab-1 machines.csv
      diskcast rooms show lab-1
      diskcast rooms template set lab-1 lab.toml
    """  # noqa: D301


rooms.add_command(template)
rooms.add_command(patch_set)


@rooms.command("list")
@list_options
@api_command
def list_rooms(client: Client, output: Output, *, limit: int, everything: bool) -> None:
    """List rooms.

    \b
    Examples:
      diskcast rooms list
      diskcast rooms list --all --json
    """  # noqa: D301
    from sender.console.output import Column
    from sender.store.records.machines import Room

    columns: list[Column[Room]] = [
        Column("room", lambda room: room.room_id),
        Column("name", lambda room: room.name if room.name != room.room_id else "", cut=True),
        Column("machines", lambda room: str(room.machine_count), right=True),
        Column("site", lambda room: room.site),
        Column("interface", lambda room: room.interface),
        Column("enrolment", lambda room: room.enrolment),
        Column("unknown machines", lambda room: room.unknown_machines),
        Column("description", lambda room: room.description, cut=True),
    ]
    output.listed(
        "room",
        client.listed("/rooms", Room),
        columns,
        limit=None if everything else limit,
        nothing="no rooms: create one with `diskcast rooms create ROOM`",
    )


@rooms.command()
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@api_command
def show(client: Client, output: Output, room_id: str) -> None:
    """Show a room and the current state of its machines.

    \b
    Examples:
      diskcast rooms show lab-1
      diskcast rooms show lab-1 --json
    """  # noqa: D301
    from sender.console.client import to_json as json_of
    from sender.console.lookup import path
    from sender.console.output import Column, emit, natural_order, state_text
    from sender.labels import MACHINE_STATES
    from sender.store.records.live import LiveMachine, RoomLive

    now = client.get(path("rooms", room_id, "live"), RoomLive)
    if output.json_lines:
        for machine in now.machines:
            emit("machine", **json_of(machine))
        output.record(now.room, [])
        return
    columns: list[Column[LiveMachine]] = [
        Column("machine", lambda machine: machine.name, cut=True),
        Column("position", lambda machine: machine.position, cut=True),
        Column("state", lambda machine: state_text(MACHINE_STATES[machine.state])),
        Column("cast", lambda machine: machine.cast_id or ""),
        Column("", lambda machine: f"{machine.progress:.0%}" if machine.cast_id else "", right=True),
        Column("address", lambda machine: machine.address),
        Column("error", lambda machine: machine.error, cut=True),
    ]
    online_count = sum(machine.online for machine in now.machines)
    output.done(
        f"{now.room.room_id}: {len(now.machines)} machines, {online_count} online"
        + (f"; {now.room.description}" if now.room.description else "")
    )
    if now.machines:
        by_place = sorted(
            now.machines,
            key=lambda machine: (
                not machine.position,
                natural_order(machine.position),
                natural_order(machine.name),
            ),
        )
        output.table(by_place, columns)


_NULLABLE: Final = ("wake_wave_size", "wake_pause_s")


def _checked_wave_size(
    _context: click.Context, parameter: click.Parameter, text: str | None
) -> str | int | None:
    if not text:
        return text
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= RECEIVER_COUNT_MAX:
        raise click.BadParameter(f"{text!r} isn't a number from 1 to {RECEIVER_COUNT_MAX}", param=parameter)
    return int(text)


def _checked_wave_pause(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> str | float | None:
    return parse_duration_s(text) if text else text


_details = (
    click.option("--name", metavar="NAME", help="Name of the room, such as 'Lab 1, first floor'."),
    click.option("--description", metavar="TEXT", help="Free text."),
    click.option("--site", metavar="SITE", help="Site whose daemons cast for the room."),
    click.option("--interface", metavar="IF", help="Network interface of the daemon for this room."),
    click.option(
        "--enrolment",
        type=click.Choice(["token", "approve", ""]),
        help="Rule for machines that enrol; empty for the daemon's.",
    ),
    click.option(
        "--unknown-machines",
        type=click.Choice(["off", "ask", "auto", ""]),
        help="Rule for unknown machines that boot; empty for the daemon's.",
    ),
    click.option(
        "--boot-menu/--no-boot-menu",
        default=None,
        help="Offer the menu before a machine boots from its disk.",
    ),
    click.option(
        "--wave-size",
        "wake_wave_size",
        metavar="N",
        callback=_checked_wave_size,
        help="Machines woken at the same time; empty for the daemon's number.",
    ),
    click.option(
        "--wave-pause",
        "wake_pause_s",
        metavar="TIME",
        callback=_checked_wave_pause,
        help="Time from one wave to the next; empty for the daemon's.",
    ),
)


def _detail_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_details):
        function = option(function)
    return function


@rooms.command()
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@_detail_options
@api_command
def create(client: Client, output: Output, room_id: str, **details: object) -> None:
    """Create a room.

    \b
    Examples:
      diskcast rooms create lab-1 --name "Lab 1"
      diskcast rooms create rack-7 --site berlin --interface eth1
      diskcast rooms create lab-2 --unknown-machines auto
    """  # noqa: D301
    from sender.store.records.machines import Room

    body: dict[str, str | bool] = {"room_id": room_id, "name": room_id}
    room = client.create("/rooms", Room, body | _given(details))
    output.done(
        f"created room {room.room_id}: add its machines with `diskcast rooms import`",
        room,
    )


@rooms.command()
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@_detail_options
@api_command
def change(client: Client, output: Output, room_id: str, **details: object) -> None:
    """Change the details of a room; an empty text clears a field.

    \b
    Examples:
      diskcast rooms change lab-1 --name "Lab 1, first floor"
      diskcast rooms change lab-1 --interface eth2 --description "" --enrolment approve
      diskcast rooms change lab-1 --wave-size 4 --wave-pause 10s
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.store.records.machines import Room

    given = _given(details)
    if not given:
        raise click.UsageError(
            "nothing to change: use at least one of --name, --description, --site, --interface, --enrolment, "
            "--unknown-machines, --boot-menu, --wave-size, --wave-pause"
        )
    room = client.change(path("rooms", room_id), Room, given)
    output.done(f"changed room {room.room_id}", room)


@rooms.command()
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@api_command
def remove(client: Client, output: Output, room_id: str) -> None:
    """Remove a room.

    Its machines stay, without a room. History keeps the room's name.

    \b
    Examples:
      diskcast rooms remove lab-1
      diskcast rooms remove lab-1 --json
    """  # noqa: D301
    from sender.console.lookup import path

    client.remove(path("rooms", room_id))
    output.done(f"removed room {room_id}", room_id=room_id)


@rooms.command("import")
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@click.argument("csv_file", metavar="FILE.csv", type=click.File("rb"))
@api_command
def import_machines(client: Client, output: Output, room_id: str, csv_file: BinaryIO) -> None:
    """Import the machines of a room from a CSV file.

    FILE.csv may be '-' for stdin. Either all lines are imported or, after an error in any line, none.
    The first line names the columns: name, mac, serial, asset_tag, position, note. A machine that is known by its
    hardware address, serial number or asset tag is changed, not added again.

    \b
    Format:
      name,mac,position
      pc01,52:54:00:12:34:01,"row 1, seat 1"
      pc02,52:54:00:12:34:02,"row 1, seat 2"

    \b
    Examples:
      diskcast rooms import lab-1 machines.csv
      diskcast rooms import lab-1 - < machines.csv
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.store.records.machines import ImportResult

    content = csv_file.read(_CSV_BYTES_MAX + 1)
    if len(content) > _CSV_BYTES_MAX:
        raise ConfigurationError(
            f"{Path(csv_file.name).name} is larger than {_CSV_BYTES_MAX >> 20} MiB: split it into smaller files"
        )
    result = client.create(path("rooms", room_id, "import"), ImportResult, csv=content)
    if result.problems:
        problems = "; ".join(f"line {problem.line}: {problem.text}" for problem in result.problems)
        raise ServerRefusedError(f"nothing was imported: {problems}")
    output.done(
        f"room {room_id}: {result.added} machines added, {result.changed} changed, {result.unchanged} unchanged",
        result,
    )


def _given(details: dict[str, object]) -> dict[str, object]:
    """Return the options that were given; of those that may be null, an empty text is."""
    given = {name: value for name, value in details.items() if value is not None}
    return {name: None if value == "" and name in _NULLABLE else value for name, value in given.items()}
