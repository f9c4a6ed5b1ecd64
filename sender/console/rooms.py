"""``diskcast rooms``: named sets of machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from protocol.errors import ConfigurationError, ServerRefusedError
from sender.console.options import api_command, checked_room, list_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output

_CSV_BYTES_MAX: Final = 4 << 20
"""A line takes some 100 bytes: tens of thousands of machines."""


@click.group()
def rooms() -> None:
    """Rooms: named sets of machines.

    ROOM is a room's id: lower case letters, digits and hyphens.
    """


@rooms.command("list")
@list_options
@api_command
def list_rooms(client: Client, output: Output, *, limit: int, everything: bool) -> None:
    """List the rooms."""
    from sender.console.output import Column
    from sender.store.records.machines import Room

    columns: list[Column[Room]] = [
        Column("room", lambda room: room.room_id),
        Column("name", lambda room: room.name if room.name != room.room_id else "", cut=True),
        Column("machines", lambda room: str(room.machine_count), right=True),
        Column("site", lambda room: room.site),
        Column("interface", lambda room: room.interface),
        Column("description", lambda room: room.description, cut=True),
    ]
    output.listed(
        "room",
        client.listed("/rooms", Room),
        columns,
        limit=None if everything else limit,
        nothing="no rooms: `diskcast rooms create ROOM` makes one",
    )


@rooms.command()
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@api_command
def show(client: Client, output: Output, room_id: str) -> None:
    """Show a room's machines as they are now."""
    from sender.console.client import to_json as json_of
    from sender.console.live_records import RoomNow
    from sender.console.lookup import path
    from sender.console.output import Column, emit, natural_order
    from sender.store.records.live import LiveMachine

    now = client.get(path("rooms", room_id, "live"), RoomNow)
    if output.json_lines:
        for machine in now.machines:
            emit("machine", **json_of(machine))
        output.record(now.room, [])
        return
    columns: list[Column[LiveMachine]] = [
        Column("machine", lambda machine: machine.name, cut=True),
        Column("position", lambda machine: machine.position, cut=True),
        Column("state", lambda machine: machine.state),
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


_details = (
    click.option("--name", metavar="NAME", help="For people, for example 'Lab 1, first floor'."),
    click.option("--description", metavar="TEXT", help="Anything."),
    click.option("--site", metavar="SITE", help="Only daemons that serve this site cast for the room."),
    click.option("--interface", metavar="IF", help="The daemon's network interface for this room."),
)


@rooms.command()
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@_details[0]
@_details[1]
@_details[2]
@_details[3]
@api_command
def create(client: Client, output: Output, room_id: str, **details: str | None) -> None:
    """Create a room.

    Example: diskcast rooms create lab-1 --name "Lab 1"
    """
    from sender.store.records.machines import Room

    room = client.create("/rooms", Room, {"room_id": room_id} | {"name": room_id} | _given(details))
    output.done(
        f"room {room.room_id} is there: bring its machines by `diskcast rooms import`",
        room,
    )


@rooms.command()
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@_details[0]
@_details[1]
@_details[2]
@_details[3]
@api_command
def change(client: Client, output: Output, room_id: str, **details: str | None) -> None:
    """Change what is said of a room; an empty text clears it."""
    from sender.console.lookup import path
    from sender.store.records.machines import Room

    given = _given(details)
    if not given:
        raise click.UsageError(
            "nothing to change: give at least one of --name, --description, --site, --interface"
        )
    room = client.change(path("rooms", room_id), Room, given)
    output.done(f"room {room.room_id} is changed", room)


@rooms.command()
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@api_command
def remove(client: Client, output: Output, room_id: str) -> None:
    """Remove a room. History keeps its name."""
    from sender.console.lookup import path

    client.remove(path("rooms", room_id))
    output.done(f"room {room_id} is removed", room_id=room_id)


@rooms.command("import")
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@click.argument("csv_file", metavar="FILE.csv", type=click.File("rb"))
@api_command
def import_machines(client: Client, output: Output, room_id: str, csv_file: BinaryIO) -> None:
    """Bring machines in from a CSV file.

    All lines are taken or none; FILE.csv may be '-' for stdin.

    The first line names the columns: name, mac, serial, asset_tag, position. Machines that are known by any of
    mac, serial and asset_tag are changed, not doubled.

    \b
    Example:
      name,mac,position
      pc01,52:54:00:12:34:01,"row 1, seat 1"
      pc02,52:54:00:12:34:02,"row 1, seat 2"
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.store.records.machines import ImportResult

    content = csv_file.read(_CSV_BYTES_MAX + 1)
    if len(content) > _CSV_BYTES_MAX:
        raise ConfigurationError(
            f"{Path(csv_file.name).name} is larger than {_CSV_BYTES_MAX >> 20} MiB: no list of a room is"
        )
    answer = client.create(path("rooms", room_id, "import"), ImportResult, csv=content)
    if answer.problems:
        said = "; ".join(f"line {problem.line}: {problem.text}" for problem in answer.problems)
        raise ServerRefusedError(f"nothing is imported: {said}")
    output.done(
        f"room {room_id}: {answer.added} machines added, {answer.changed} changed, {answer.unchanged} as they were",
        answer,
    )


def _given(details: dict[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in details.items() if text is not None}
