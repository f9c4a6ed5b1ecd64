"""``diskcast rooms template`` and ``diskcast machines variables``: declared settings of machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from protocol.errors import ConfigurationError, ServerRefusedError
from sender.console.options import api_command, checked_room

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output

_ID_DIGITS: Final = 12
_FILE_BYTES_MAX: Final = 2 << 20
"""The daemon's limit of a CSV file; templates are smaller."""


@click.group()
def template() -> None:
    """Show, change and try a room's template of machine patches.

    A template declares the settings of each machine of the room, such as its host name. Casts to the room write them
    with the image.

    \b
    Examples:
      diskcast rooms template set lab-1 lab.toml
      diskcast rooms template preview lab-1 pc07
      diskcast rooms template show lab-1
    """  # noqa: D301


@template.command("show")
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@api_command
def show_template(client: Client, output: Output, room_id: str) -> None:
    """Print a room's template, with its secrets.

    \b
    Examples:
      diskcast rooms template show lab-1 > lab.toml
      diskcast rooms template show lab-1 --json
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.store.records.patch_inputs import RoomTemplate

    found = client.get(path("rooms", room_id, "template"), RoomTemplate)
    if output.json_lines:
        output.record(found, [])
    else:
        click.echo(found.text, nl=not found.text.endswith("\n"))


@template.command("set")
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@click.argument("file", metavar="FILE.toml", type=click.File("rb"))
@api_command
def set_template(client: Client, output: Output, room_id: str, file: BinaryIO) -> None:
    """Replace a room's template by a file, '-' for stdin. Casts that start later use it.

    \b
    Examples:
      diskcast rooms template set lab-1 lab.toml
      diskcast rooms template set lab-1 - < lab.toml
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.store.records.patch_inputs import RoomTemplate

    body = {"text": _text(file)}
    saved = client.put(path("rooms", room_id, "template"), RoomTemplate, body)
    output.done(
        f"room {room_id}: saved the template", room_id=saved.room_id, changed_at=str(saved.changed_at)
    )


@template.command("remove")
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@api_command
def remove_template(client: Client, output: Output, room_id: str) -> None:
    """Remove a room's template: its machines get images as they are.

    \b
    Examples:
      diskcast rooms template remove lab-1
      diskcast rooms template remove lab-1 --json
    """  # noqa: D301
    from sender.console.lookup import path

    client.remove(path("rooms", room_id, "template"))
    output.done(f"room {room_id}: removed the template", room_id=room_id)


@template.command()
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@click.argument("machine")
@click.option("--file", type=click.File("rb"), metavar="FILE.toml", help="A template that isn't saved yet.")
@api_command
def preview(client: Client, output: Output, room_id: str, machine: str, file: BinaryIO | None) -> None:
    """Show the settings that one machine gets; secrets are hidden.

    \b
    Examples:
      diskcast rooms template preview lab-1 pc07
      diskcast rooms template preview lab-1 pc07 --file lab.toml
    """  # noqa: D301
    from sender.console.lookup import find_machine, path
    from sender.store.records.patch_inputs import SeedPreview

    found = find_machine(client, machine)
    body: dict[str, object] = {"machine_id": found.machine_id}
    if file is not None:
        body["text"] = _text(file)
    shown = client.order(path("rooms", room_id, "template", "preview"), SeedPreview, body)
    if shown.problem:
        raise ServerRefusedError(shown.problem)
    output.record(
        shown,
        [
            ("machine", shown.machine_name),
            ("patch for", shown.patch_machine_id),
            ("host name", shown.hostname),
        ],
    )
    if not output.json_lines:
        for name, content in shown.files.items():
            click.echo(f"\n# {name}\n{content.rstrip()}")


@click.group("patch-set")
def patch_set() -> None:
    """Upload signed sets of machine patches, for images that are signed with --patches signed.

    \b
    Examples:
      diskcast rooms patch-set upload lab-1 lab-patches
      diskcast rooms patch-set list lab-1
    """  # noqa: D301


@patch_set.command("upload")
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@click.argument("folder", type=click.Path(path_type=Path))
@api_command
def upload_set(client: Client, output: Output, room_id: str, folder: Path) -> None:
    """Upload the patches of FOLDER with their signed set, as `diskcast patches build` and `patches sign` wrote them.

    They replace the room's set for the same image.

    \b
    Examples:
      diskcast rooms patch-set upload lab-1 lab-patches
      diskcast rooms patch-set upload lab-1 lab-patches --json
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.patches.patch_bundle import build_bundle
    from sender.patches.patch_directory import PATCH_SUFFIX, SET_NAME
    from sender.store.records.patch_inputs import RoomPatchSet

    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == PATCH_SUFFIX)
        bundle = build_bundle((folder / SET_NAME).read_bytes(), [one.read_bytes() for one in paths])
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{folder} has no {SET_NAME}: build its patches with `diskcast patches build`, and sign them with "
            "`diskcast patches sign`"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"can't read the patches of {folder}: {error.strerror}") from error
    saved = client.put_bytes(path("rooms", room_id, "patch-sets"), RoomPatchSet, bundle)
    output.done(f"room {room_id}: uploaded {saved.machine_count} patches of the set {saved.name}", saved)


@patch_set.command("list")
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@api_command
def list_sets(client: Client, output: Output, room_id: str) -> None:
    """List the signed sets of a room.

    \b
    Examples:
      diskcast rooms patch-set list lab-1
      diskcast rooms patch-set list lab-1 --json
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.console.output import Column, local_time
    from sender.store.records.patch_inputs import RoomPatchSet

    columns: list[Column[RoomPatchSet]] = [
        Column("set", lambda one: one.name, cut=True),
        Column("image", lambda one: one.image_id[:_ID_DIGITS]),
        Column("machines", lambda one: str(one.machine_count), right=True),
        Column("uploaded", lambda one: local_time(one.changed_at)),
        Column("by", lambda one: one.changed_by, cut=True),
    ]
    found = client.get(path("rooms", room_id, "patch-sets"), list[RoomPatchSet])
    output.listed("patch_set", found, columns, limit=None, nothing=f"room {room_id} has no signed sets")


@patch_set.command("remove")
@click.argument("room_id", metavar="ROOM", callback=checked_room)
@click.argument("image")
@api_command
def remove_set(client: Client, output: Output, room_id: str, image: str) -> None:
    """Remove the signed set of a room for IMAGE.

    \b
    Examples:
      diskcast rooms patch-set remove lab-1 lab@3
      diskcast rooms patch-set remove lab-1 9f86d081 --json
    """  # noqa: D301
    from sender.console.lookup import find_image, path

    image_id = find_image(client, image).image_id
    client.remove(path("rooms", room_id, "patch-sets", image_id))
    output.done(f"room {room_id}: removed the set", room_id=room_id, image_id=image_id)


@click.group()
def variables() -> None:
    """Show and change the variables of machines, which templates of rooms use.

    \b
    Examples:
      diskcast machines variables import --room lab-1 lab.csv
      diskcast machines variables set pc07 ip=10.1.2.7
      diskcast machines variables show pc07
    """  # noqa: D301


@variables.command("show")
@click.argument("machine")
@api_command
def show_variables(client: Client, output: Output, machine: str) -> None:
    """Show the variables of a machine, with its secrets.

    \b
    Examples:
      diskcast machines variables show pc07
      diskcast machines variables show pc07 --json
    """  # noqa: D301
    from sender.console.lookup import find_machine, path
    from sender.store.records.patch_inputs import MachineVariables

    found = find_machine(client, machine)
    known = client.get(path("machines", found.machine_id, "variables"), MachineVariables)
    output.record(known, [("machine", found.name), *sorted(known.variables.items())])


@variables.command("set")
@click.argument("machine")
@click.argument("assignments", metavar="NAME=VALUE...", nargs=-1, required=True)
@api_command
def set_variables(client: Client, output: Output, machine: str, assignments: tuple[str, ...]) -> None:
    """Set variables of a machine; an empty VALUE removes one, and the others stay.

    Every user of this computer can read its command lines: import secrets from a file.

    \b
    Examples:
      diskcast machines variables set pc07 ip=10.1.2.7 printer=lab-2
      diskcast machines variables set pc07 printer=
    """  # noqa: D301
    from sender.console.lookup import find_machine, path
    from sender.store.records.patch_inputs import MachineVariables

    given = {}
    for text in assignments:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"{text!r} isn't NAME=VALUE", param_hint="NAME=VALUE")
        given[name] = value
    found = find_machine(client, machine)
    place = path("machines", found.machine_id, "variables")
    known = client.get(place, MachineVariables)
    saved = client.put(place, MachineVariables, {"variables": {**known.variables, **given}})
    names = ", ".join(sorted(saved.variables)) or "none"
    output.done(f"{found.name} has the variables {names}", saved)


@variables.command("import")
@click.option(
    "--room", "room_id", metavar="ROOM", required=True, callback=checked_room, help="Room of the machines."
)
@click.argument("csv_file", metavar="FILE.csv", type=click.File("rb"))
@api_command
def import_variables(client: Client, output: Output, room_id: str, csv_file: BinaryIO) -> None:
    """Import variables of a room's machines from a CSV file, as `diskcast patches build` reads it.

    FILE.csv may be '-' for stdin. Either all lines are imported or, after an error in any line, none. The columns name,
    mac, serial and asset_tag find the machine; each other column is a variable. An empty cell removes a variable.

    \b
    Examples:
      diskcast machines variables import --room lab-1 lab.csv
      diskcast machines variables import --room lab-1 - < lab.csv
    """  # noqa: D301
    from sender.console.lookup import path
    from sender.store.records.patch_inputs import VariablesImport

    content = csv_file.read(_FILE_BYTES_MAX + 1)
    if len(content) > _FILE_BYTES_MAX:
        raise ConfigurationError(
            f"{Path(csv_file.name).name} is larger than {_FILE_BYTES_MAX >> 20} MiB: split it into smaller files"
        )
    place = path("rooms", room_id, "variables", "import")
    result = client.create(place, VariablesImport, csv=content)
    if result.problems:
        problems = "; ".join(f"line {problem.line}: {problem.text}" for problem in result.problems)
        raise ServerRefusedError(f"nothing was imported: {problems}")
    output.done(
        f"room {room_id}: variables of {result.changed} machines changed, of {result.unchanged} unchanged",
        result,
    )


def _text(file: BinaryIO) -> str:
    """Return the text of a template's file.

    Raises:
        ConfigurationError: it is too large, or isn't UTF-8.
    """
    content = file.read(_FILE_BYTES_MAX + 1)
    if len(content) > _FILE_BYTES_MAX:
        raise ConfigurationError(f"{file.name} is larger than {_FILE_BYTES_MAX >> 20} MiB: it is no template")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file.name} isn't UTF-8: save it as UTF-8") from error
