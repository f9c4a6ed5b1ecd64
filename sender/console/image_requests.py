"""``diskcast machines requests`` and its decisions: images that technicians requested at machines' consoles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sender.console.options import api_command

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output


@click.command()
@api_command
def requests(client: Client, output: Output) -> None:
    """List images that were requested at machines' consoles and wait for a decision.

    \b
    Examples:
      diskcast machines requests
      diskcast machines requests --json
    """  # noqa: D301
    from sender.console.output import Column, local_time
    from sender.store.records.image_requests import ImageRequest

    columns: list[Column[ImageRequest]] = [
        Column("machine", lambda request: request.machine_name, cut=True),
        Column("room", lambda request: request.room_id or ""),
        Column("image", lambda request: request.image_name, cut=True),
        Column("disk", lambda request: request.disk, cut=True),
        Column("code", lambda request: request.code),
        Column("requested", lambda request: local_time(request.asked_at)),
    ]
    output.listed(
        "request",
        client.listed("/requests", ImageRequest),
        columns,
        limit=None,
        nothing="no requests: technicians make them in the menu at a machine's console",
    )


@click.command("approve-request")
@click.argument("machine")
@click.option("--code", metavar="CODE", required=True, help="Code that the machine shows.")
@api_command
def approve_request(client: Client, output: Output, machine: str, *, code: str) -> None:
    """Approve the request of a machine: cast the image to it, which overwrites the disk that was confirmed there.

    Compare CODE on the machine's own screen.

    \b
    Examples:
      diskcast machines approve-request pc07 --code 7KX2QM
      diskcast machines approve-request pc07 --code 7KX2QM --json
    """  # noqa: D301
    from sender.console.lookup import find_machine, path
    from sender.store.records.casts import Cast

    found = find_machine(client, machine)
    cast = client.order(path("machines", found.machine_id, "requests", "approve"), Cast, {"code": code})
    output.done(f"{found.name} gets {cast.image_name} by cast {cast.cast_id}", cast)


@click.command("decline-request")
@click.argument("machine")
@click.option("--code", metavar="CODE", required=True, help="Code that the machine shows.")
@api_command
def decline_request(client: Client, output: Output, machine: str, *, code: str) -> None:
    """Decline the request of a machine; nothing is written there.

    \b
    Examples:
      diskcast machines decline-request pc07 --code 7KX2QM
      diskcast machines decline-request pc07 --code 7KX2QM --json
    """  # noqa: D301
    from sender.console.lookup import find_machine, path
    from sender.store.records.image_requests import ImageRequest

    found = find_machine(client, machine)
    declined = client.order(
        path("machines", found.machine_id, "requests", "decline"), ImageRequest, {"code": code}
    )
    output.done(f"declined the request of {found.name}", declined)
