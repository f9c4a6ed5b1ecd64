"""``diskcast machines``: what is imaged, whether it is switched on or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import click

from sender.console.options import api_command, checked_room, list_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output
    from sender.store.records.machines import Machine


@click.group()
def machines() -> None:
    """Machines, whether they are switched on or not.

    MACHINE is a name, a hardware address, a serial number, an asset tag or an id.
    """


class Details(TypedDict):
    """What the options of ``add`` and ``change`` say; None or empty where they say nothing."""

    mac: tuple[str, ...]
    serial: str | None
    asset_tag: str | None
    position: str | None
    note: str | None


def _detail_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--note", metavar="TEXT", help="Anything."),
        click.option("--position", metavar="TEXT", help="Where it stands, for people: 'row 2, seat 5'."),
        click.option("--asset-tag", metavar="TAG", help="Asset tag, as its firmware says it."),
        click.option("--serial", metavar="NUMBER", help="Serial number, as its firmware says it."),
        click.option("--mac", metavar="MAC", multiple=True, help="Hardware address; once for each card."),
    ):
        function = option(function)
    return function


@machines.command("list")
@click.option("--room", "room_id", metavar="ROOM", callback=checked_room, help="Only those of this room.")
@list_options
@api_command
def list_machines(
    client: Client, output: Output, *, room_id: str | None, limit: int, everything: bool
) -> None:
    """List machines."""
    from sender.console.output import Column, local_time
    from sender.store.records.machines import Machine

    columns: list[Column[Machine]] = [
        Column("machine", lambda machine: machine.name, cut=True),
        Column("room", lambda machine: machine.room_id or ""),
        Column("position", lambda machine: machine.position, cut=True),
        Column("mac", lambda machine: machine.macs[0] if machine.macs else ""),
        Column("address", lambda machine: machine.address),
        Column("last seen", lambda machine: local_time(machine.last_seen_at)),
    ]
    output.listed(
        "machine",
        client.listed("/machines", Machine, {"room_id": room_id}),
        columns,
        limit=None if everything else limit,
        nothing="no machines: they appear when their agent checks in, or by `diskcast rooms import`",
    )


@machines.command()
@click.argument("machine")
@api_command
def show(client: Client, output: Output, machine: str) -> None:
    """Show what is known of one machine."""
    from sender.console.lookup import find_machine
    from sender.console.output import local_time

    found = find_machine(client, machine)
    output.record(
        found,
        [
            ("machine", found.name),
            ("id", found.machine_id),
            ("room", found.room_id or ""),
            ("position", found.position),
            ("mac", " ".join(found.macs)),
            ("serial", found.serial),
            ("asset tag", found.asset_tag),
            ("note", found.note),
            ("address", found.address),
            ("agent", found.agent_version),
            ("last seen", local_time(found.last_seen_at)),
            ("known since", local_time(found.created_at)),
            *((key, str(value)) for key, value in found.inventory.items()),
        ],
    )


@machines.command()
@click.argument("name")
@click.option("--room", "room_id", metavar="ROOM", callback=checked_room, help="The room that it stands in.")
@_detail_options
@api_command
def add(
    client: Client,
    output: Output,
    name: str,
    *,
    room_id: str | None,
    mac: tuple[str, ...],
    serial: str | None,
    asset_tag: str | None,
    position: str | None,
    note: str | None,
) -> None:
    """Add a machine before it is seen.

    Its agent is known by any of --mac, --serial and --asset-tag.

    Example: diskcast machines add pc07 --room lab-1 --mac 52:54:00:12:34:07
    """
    from sender.store.records.machines import Machine

    details = _given(Details(mac=mac, serial=serial, asset_tag=asset_tag, position=position, note=note))
    machine = client.create("/machines", Machine, {"name": name, "room_id": room_id} | details)
    output.done(f"{machine.name} is added{_in_room(machine)}", machine)


@machines.command()
@click.argument("machine")
@click.option("--name", metavar="NAME", help="A new name.")
@_detail_options
@api_command
def change(
    client: Client,
    output: Output,
    machine: str,
    *,
    name: str | None,
    mac: tuple[str, ...],
    serial: str | None,
    asset_tag: str | None,
    position: str | None,
    note: str | None,
) -> None:
    """Change what is said of a machine.

    --mac replaces all its addresses, an empty text clears.
    """
    from sender.console.lookup import find_machine, path
    from sender.store.records.machines import Machine

    details = _given(Details(mac=mac, serial=serial, asset_tag=asset_tag, position=position, note=note))
    details |= {} if name is None else {"name": name}
    if not details:
        raise click.UsageError(
            "nothing to change: give --name, --mac, --serial, --asset-tag, --position or --note"
        )
    found = find_machine(client, machine)
    changed = client.change(path("machines", found.machine_id), Machine, details)
    output.done(f"{changed.name} is changed", changed)


@machines.command()
@click.argument("machine", nargs=-1, required=True)
@click.option(
    "--room", "room_id", metavar="ROOM", callback=checked_room, help="Where they stand from now on."
)
@click.option("--no-room", is_flag=True, help="Take them out of their room.")
@api_command
def move(
    client: Client, output: Output, machine: tuple[str, ...], *, room_id: str | None, no_room: bool
) -> None:
    """Move machines to another room.

    Example: diskcast machines move pc07 pc08 --room lab-2
    """
    from sender.console.client import to_json as json_of
    from sender.console.lookup import find_machine, path
    from sender.console.output import emit
    from sender.store.records.machines import Machine

    if (room_id is None) == (not no_room):
        raise click.UsageError("give either --room or --no-room")
    found = [find_machine(client, text) for text in machine]  # all are known before the first is moved
    for one in found:
        moved = client.change(path("machines", one.machine_id), Machine, {"room_id": room_id})
        if output.json_lines:
            emit("machine", **json_of(moved))
    where = "are in no room now" if room_id is None else f"are in room {room_id} now"
    output.done(f"{', '.join(one.name for one in found)} {where}", count=len(found))


@machines.command()
@click.argument("machine")
@api_command
def remove(client: Client, output: Output, machine: str) -> None:
    """Remove a machine. History keeps its name; it comes back if its agent checks in again."""
    from sender.console.lookup import find_machine, path

    found = find_machine(client, machine)
    client.remove(path("machines", found.machine_id))
    output.done(f"{found.name} is removed", machine_id=found.machine_id)


@machines.command()
@click.argument("machine")
@list_options
@api_command
def history(client: Client, output: Output, machine: str, *, limit: int, everything: bool) -> None:
    """Show what a machine was imaged with.

    One line a cast, the newest first, with how it went.
    """
    from sender.console.lookup import find_machine, path
    from sender.console.tables import print_history
    from sender.store.records.casts import HistoryLine

    found = find_machine(client, machine)
    lines = client.listed(path("machines", found.machine_id, "history"), HistoryLine)
    print_history(output, lines, limit=None if everything else limit)


def _given(details: Details) -> dict[str, object]:
    given: dict[str, object] = {
        key: value for key, value in details.items() if key != "mac" and value is not None
    }
    if details["mac"]:
        given["macs"] = [mac for mac in details["mac"] if mac]
    return given


def _in_room(machine: Machine) -> str:
    return "" if machine.room_id is None else f" in room {machine.room_id}"
