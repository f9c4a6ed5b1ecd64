"""``diskcast machines``: known machines, online or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import click

from sender.console.captures import capture
from sender.console.csv_file import csv_option, write_csv
from sender.console.image_requests import approve_request, decline_request, requests
from sender.console.options import api_command, checked_room, list_options
from sender.console.patch_inputs import variables
from sender.console.waking import wake

if TYPE_CHECKING:
    from pathlib import Path

    from sender.console.client import Client
    from sender.console.output import Output
    from sender.store.records.casts import HistoryLine
    from sender.store.records.machines import Machine


@click.group()
def machines() -> None:
    """Manage machines, online or not.

    MACHINE is the name, hardware address, serial number, asset tag or id of a machine.

    \b
    Examples:
      diskcast machines list --room lab-1
      diskcast machines show pc07
      diskcast machines move pc07 pc08 --room lab-2
      diskcast machines approve pc07 --code 7KX2QM
      diskcast machines wake --room lab-1
    """  # noqa: D301


for command in (wake, capture, requests, approve_request, decline_request, variables):
    machines.add_command(command)


_search_option = click.option("--search", metavar="WORDS", help="Only machines with all of these words.")


class Details(TypedDict):
    """Values of the options that ``add`` and ``change`` share; None or empty for an option that isn't given."""

    mac: tuple[str, ...]
    serial: str | None
    asset_tag: str | None
    position: str | None
    note: str | None


def _detail_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--note", metavar="TEXT", help="Free text."),
        click.option("--position", metavar="TEXT", help="Place of the machine, such as 'row 2, seat 5'."),
        click.option("--asset-tag", metavar="TAG", help="Asset tag, as in the machine's firmware."),
        click.option("--serial", metavar="NUMBER", help="Serial number, as in the machine's firmware."),
        click.option(
            "--mac",
            metavar="MAC",
            multiple=True,
            help="Hardware address; repeat it for each card.",
        ),
    ):
        function = option(function)
    return function


@machines.command("list")
@click.option("--room", "room_id", metavar="ROOM", callback=checked_room, help="Only machines of this room.")
@_search_option
@csv_option
@list_options
@api_command
def list_machines(
    client: Client,
    output: Output,
    *,
    room_id: str | None,
    search: str | None,
    csv_path: Path | None,
    limit: int,
    everything: bool,
) -> None:
    """List machines, by name.

    --search finds words of names, places, notes, addresses, serial numbers and hardware, such as 4kn, bios, r8169 or
    "smart failing".

    \b
    Examples:
      diskcast machines list
      diskcast machines list --search "nvme 4kn"
      diskcast machines list --room lab-1 --csv lab-1.csv
      diskcast machines list --room lab-1 --all
      diskcast machines list --json
    """  # noqa: D301
    from sender.console.output import Column, local_time, state_text
    from sender.labels import ENROLMENT_STATES
    from sender.store.records.machines import Machine

    query = {"room_id": room_id, "search": search}
    if csv_path is not None:
        write_csv(client, output, "/machines.csv", query, csv_path)
        return
    columns: list[Column[Machine]] = [
        Column("machine", lambda machine: machine.name, cut=True),
        Column("room", lambda machine: machine.room_id or ""),
        Column("position", lambda machine: machine.position, cut=True),
        Column("mac", lambda machine: machine.macs[0] if machine.macs else ""),
        Column("address", lambda machine: machine.address),
        Column("enrolment", lambda machine: state_text(ENROLMENT_STATES[machine.enrolment])),
        Column("code", lambda machine: machine.approval_code),
        Column("last seen", lambda machine: local_time(machine.last_seen_at)),
    ]
    output.listed(
        "machine",
        client.listed("/machines", Machine, query),
        columns,
        limit=None if everything else limit,
        nothing="no machines: start their agents, or import them with `diskcast rooms import`",
    )


@machines.command()
@click.argument("machine")
@api_command
def show(client: Client, output: Output, machine: str) -> None:
    """Show a machine: its identity, room and inventory.

    \b
    Examples:
      diskcast machines show pc07
      diskcast machines show 52:54:00:12:34:07 --json
    """  # noqa: D301
    from sender.console.lookup import find_machine, path
    from sender.console.output import local_time, state_text
    from sender.labels import BOOT_ACTIONS, ENROLMENT_STATES
    from sender.store.records.boots import BootAction
    from sender.store.records.casts import HistoryLine

    found = find_machine(client, machine)
    hardware = _hardware_of(client, found)
    last = next(client.listed(path("machines", found.machine_id, "history"), HistoryLine), None)
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
            ("enrolment", state_text(ENROLMENT_STATES[found.enrolment])),
            ("code", found.approval_code),
            ("enrolled", local_time(found.enrolled_at)),
            ("enrolled by", found.enrolled_by),
            ("last claim", local_time(found.claimed_at)),
            ("claimed from", found.claimed_from),
            ("last seen", local_time(found.last_seen_at)),
            ("last boot", local_time(found.booted_at)),
            ("booted", _boot_text(found)),
            ("next boot", BOOT_ACTIONS[BootAction(found.next_boot)] if found.next_boot else ""),
            ("firmware UUID", found.uuid),
            ("last cast", "" if last is None else _last_cast_text(last)),
            ("added", local_time(found.created_at)),
            *((key, str(value)) for key, value in found.inventory.items()),
            *hardware,
        ],
    )


@machines.command()
@click.argument("name")
@click.option("--room", "room_id", metavar="ROOM", callback=checked_room, help="Room of the machine.")
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
    """Add a machine before its agent checks in.

    The daemon recognizes its agent by any of --mac, --serial and --asset-tag.

    \b
    Examples:
      diskcast machines add pc07 --room lab-1 --mac 52:54:00:12:34:07
      diskcast machines add pc08 --serial PF1XYZ --position "row 2, seat 5"
    """  # noqa: D301
    from sender.store.records.machines import Machine

    details = _given(Details(mac=mac, serial=serial, asset_tag=asset_tag, position=position, note=note))
    machine = client.create("/machines", Machine, {"name": name, "room_id": room_id} | details)
    output.done(f"added {machine.name}{_in_room(machine)}", machine)


@machines.command()
@click.argument("machine")
@click.option("--name", metavar="NAME", help="New name.")
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
    """Change the details of a machine.

    --mac replaces all hardware addresses; an empty text clears a field.

    \b
    Examples:
      diskcast machines change pc07 --name pc17
      diskcast machines change pc07 --mac 52:54:00:12:34:07 --note ""
    """  # noqa: D301
    from sender.console.lookup import find_machine, path
    from sender.store.records.machines import Machine

    details = _given(Details(mac=mac, serial=serial, asset_tag=asset_tag, position=position, note=note))
    details |= {} if name is None else {"name": name}
    if not details:
        raise click.UsageError(
            "nothing to change: use at least one of --name, --mac, --serial, --asset-tag, --position, --note"
        )
    found = find_machine(client, machine)
    changed = client.change(path("machines", found.machine_id), Machine, details)
    output.done(f"changed {changed.name}", changed)


@machines.command()
@click.argument("machine", nargs=-1, required=True)
@click.option("--room", "room_id", metavar="ROOM", callback=checked_room, help="New room of the machines.")
@click.option("--no-room", is_flag=True, help="Remove the machines from their room.")
@api_command
def move(
    client: Client, output: Output, machine: tuple[str, ...], *, room_id: str | None, no_room: bool
) -> None:
    """Move machines to another room, or out of their room.

    \b
    Examples:
      diskcast machines move pc07 pc08 --room lab-2
      diskcast machines move pc07 --no-room
    """  # noqa: D301
    from sender.console.client import to_json as json_of
    from sender.console.lookup import find_machine, path
    from sender.console.output import emit
    from sender.store.records.machines import Machine

    if (room_id is None) == (not no_room):
        raise click.UsageError("use either --room or --no-room")
    found = [find_machine(client, text) for text in machine]  # look up all of them before moving the first
    for one in found:
        moved = client.change(path("machines", one.machine_id), Machine, {"room_id": room_id})
        if output.json_lines:
            emit("machine", **json_of(moved))
    where = "out of their room" if room_id is None else f"to room {room_id}"
    output.done(f"moved {', '.join(one.name for one in found)} {where}", count=len(found))


@machines.command()
@click.argument("machine")
@api_command
def remove(client: Client, output: Output, machine: str) -> None:
    """Remove a machine.

    History keeps its name. If its agent checks in again, the machine is added again.

    \b
    Examples:
      diskcast machines remove pc07
      diskcast machines remove pc07 --json
    """  # noqa: D301
    from sender.console.lookup import find_machine, path

    found = find_machine(client, machine)
    client.remove(path("machines", found.machine_id))
    output.done(f"removed {found.name}", machine_id=found.machine_id)


@machines.command("enrol-command")
@click.option("--room", "room_id", metavar="ROOM", callback=checked_room, help="Room of the machines to add.")
@click.option("--expires", metavar="TIME", default="8h", show_default=True, help="Lifetime of the token.")
@api_command
def enrol_command(client: Client, output: Output, *, room_id: str | None, expires: str) -> None:
    """Print the commands that add machines, with a new token.

    Paste them on each machine of the room. The token isn't shown again; it enrols machines, and nothing else.

    \b
    Examples:
      diskcast machines enrol-command --room lab-1
      diskcast machines enrol-command --room lab-1 --expires 30d --json
    """  # noqa: D301
    from datetime import UTC, datetime

    from sender.console.enrolment_text import enrolment_commands, known_signers, token_name
    from sender.console.output import print_message
    from sender.console.time_parsing import parse_in
    from sender.store.records.access import NewToken

    now = datetime.now(UTC)
    view = client.get("/server", dict[str, Any])
    pin, trust_keys = str(view["pin"]), known_signers(view["trust_keys"])
    body = {
        "name": token_name(room_id, now),
        "role": "enrol",
        "room_id": room_id,
        "expires_at": parse_in(expires, now).isoformat(),
    }
    created = client.create("/tokens", NewToken, body)
    if output.json_lines:
        output.done(
            "", created.token, secret=created.secret, server=client.server, pin=pin, trust_keys=trust_keys
        )
        return
    print_message("paste this on each machine; choose its interface and target:")
    click.echo(enrolment_commands(client.server, pin, created.secret, trust_keys))
    if not trust_keys:
        print_message(
            "add --trust-key with the key that signs your images: without any the agent accepts no image"
        )


@machines.command()
@click.argument("machine")
@click.option("--code", metavar="CODE", required=True, help="Code that the machine shows.")
@api_command
def approve(client: Client, output: Output, machine: str, *, code: str) -> None:
    """Approve a machine that waits for approval.

    Compare CODE on the machine's own screen: another machine could wait under the same name.

    \b
    Examples:
      diskcast machines approve pc07 --code 7KX2QM
      diskcast machines approve 52:54:00:12:34:07 --code 7KX2QM --json
    """  # noqa: D301
    from sender.console.lookup import find_machine, path
    from sender.store.records.machines import Machine

    found = find_machine(client, machine)
    approved = client.order(path("machines", found.machine_id, "approve"), Machine, {"code": code})
    output.done(f"approved {approved.name}", approved)


@machines.command()
@click.argument("machine", nargs=-1, required=True)
@api_command
def revoke(client: Client, output: Output, machine: tuple[str, ...]) -> None:
    """Revoke the access of machines: they are out within five seconds.

    A running cast of a revoked machine continues without it. To let a machine enrol again, use readmit.

    \b
    Examples:
      diskcast machines revoke pc07
      diskcast machines revoke pc07 pc08 --json
    """  # noqa: D301
    from sender.console.client import to_json as json_of
    from sender.console.lookup import find_machine, path
    from sender.console.output import emit, print_message
    from sender.store.records.machines import MachineRevocation

    found = [find_machine(client, text) for text in machine]  # look up all of them before revoking the first
    for one in found:
        revoked = client.order(path("machines", one.machine_id, "revoke"), MachineRevocation)
        if output.json_lines:
            emit("machine", **json_of(revoked))
        elif not revoked.recorded:
            print_message(
                f"{one.name} is out of this daemon; the database is unavailable, so other daemons learn of it later"
            )
    output.done(f"revoked {', '.join(one.name for one in found)}", count=len(found))


@machines.command()
@click.argument("machine")
@api_command
def readmit(client: Client, output: Output, machine: str) -> None:
    """Let a revoked machine enrol again, with a token for enrolment.

    \b
    Examples:
      diskcast machines readmit pc07
      diskcast machines readmit pc07 --json
    """  # noqa: D301
    from sender.console.lookup import find_machine, path
    from sender.store.records.machines import Machine

    found = find_machine(client, machine)
    readmitted = client.order(path("machines", found.machine_id, "readmit"), Machine)
    output.done(f"{readmitted.name} can enrol again", readmitted)


@machines.command()
@click.argument("machine", nargs=-1, required=True)
@click.option(
    "--live/--planned",
    required=True,
    help="Boot the live system once, or decide by what is planned.",
)
@api_command
def boot(client: Client, output: Output, machine: tuple[str, ...], *, live: bool) -> None:
    """Choose the system of the next boot over the network.

    A machine boots the live system while a cast waits for it, and otherwise its disk. --live makes it boot the live
    system once, until its agent has checked in. It doesn't switch the machine on.

    \b
    Examples:
      diskcast machines boot pc07 --live
      diskcast machines boot pc07 pc08 --planned
    """  # noqa: D301
    from sender.console.client import to_json as json_of
    from sender.console.lookup import find_machine, path
    from sender.console.output import emit
    from sender.store.records.machines import Machine

    found = [find_machine(client, text) for text in machine]  # look up all of them before changing the first
    for one in found:
        changed = client.change(
            path("machines", one.machine_id), Machine, {"next_boot": "live" if live else ""}
        )
        if output.json_lines:
            emit("machine", **json_of(changed))
    what = "the live system at its next boot" if live else "as planned"
    output.done(f"{', '.join(one.name for one in found)}: {what}", count=len(found))


@machines.command()
@click.argument("machine")
@list_options
@api_command
def history(client: Client, output: Output, machine: str, *, limit: int, everything: bool) -> None:
    """List the casts to a machine with their results, the newest first.

    \b
    Examples:
      diskcast machines history pc07
      diskcast machines history pc07 --all --json
    """  # noqa: D301
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


def _hardware_of(client: Client, machine: Machine) -> list[tuple[str, str]]:
    """Return the rows that the textual inventory doesn't have: one for each disk and card, and the TPM."""
    from http import HTTPStatus

    from protocol.errors import ServerRefusedError
    from sender.console.lookup import path
    from sender.store.records.hardware import MachineHardware, disk_text, health_text

    try:
        hardware = client.get(path("machines", machine.machine_id, "hardware"), MachineHardware).hardware
    except ServerRefusedError as error:
        if error.details.get("status") != HTTPStatus.NOT_FOUND:
            raise
        return []  # its agent hasn't reported it yet
    rows = [("architecture", hardware.architecture), ("TPM", hardware.tpm_version)]
    for disk in hardware.disks:
        facts = (disk_text(disk), f"{disk.sector_bytes}-byte sectors", f"SMART {health_text(disk.health)}")
        rows.append(("disk", ", ".join(facts)))
    for card in hardware.cards:
        speed = "" if card.speed_mbps is None else f"{card.speed_mbps} Mbit/s"
        shown = (
            card.name,
            card.mac,
            card.device_id,
            card.driver or "no driver",
            speed,
            "USB" if card.on_usb else "",
        )
        rows.append(("card", ", ".join(filter(None, shown))))
    return rows


def _last_cast_text(line: HistoryLine) -> str:
    """Return the image of a machine's last cast, with the result."""
    from sender.labels import MACHINE_STATES

    state = MACHINE_STATES[line.state].text.lower() + (", customised" if line.patch_id else "")
    return f"{line.image_name} ({state}), cast {line.cast_id}"


def _boot_text(machine: Machine) -> str:
    """Return the system of a machine's last boot, with the reason and the firmware."""
    from sender.labels import BOOT_ACTIONS
    from sender.store.records.boots import BootAction

    if not machine.boot_action:
        return ""
    firmware = f" ({machine.boot_firmware})" if machine.boot_firmware else ""
    return f"{BOOT_ACTIONS[BootAction(machine.boot_action)]}{firmware}: {machine.boot_text}"


def _in_room(machine: Machine) -> str:
    return "" if machine.room_id is None else f" to room {machine.room_id}"
