"""``diskcast images``: the daemon's library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from protocol.shared.units import format_bytes
from sender.console.options import api_command, list_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output
    from sender.store.records.images import Image

_ID_LETTERS = 12


@click.group()
def images() -> None:
    """Images that the daemon can cast: files of its folders, and remote ones by URL.

    IMAGE is a name, the name of its file, an id, or the first 8 digits of an id or more.
    """


@images.command("list")
@list_options
@api_command
def list_images(client: Client, output: Output, *, limit: int, everything: bool) -> None:
    """List the library."""
    from sender.console.output import Column, local_time
    from sender.store.records.images import Image

    columns: list[Column[Image]] = [
        Column("name", lambda image: image.name, cut=True),
        Column("id", lambda image: image.image_id[:_ID_LETTERS]),
        Column("state", lambda image: image.state.value),
        Column("disk", lambda image: format_bytes(image.raw_bytes) if image.raw_bytes else "", right=True),
        Column(
            "file", lambda image: format_bytes(image.stored_bytes) if image.stored_bytes else "", right=True
        ),
        Column("packed", lambda image: local_time(image.packed_at)),
    ]
    output.listed(
        "image",
        client.listed("/images", Image),
        columns,
        limit=None if everything else limit,
        nothing="no images: put NAME.dci files into the daemon's folder, or name a URL by `diskcast images add`",
    )


@images.command()
@click.argument("image")
@api_command
def show(client: Client, output: Output, image: str) -> None:
    """Show one image.

    Where it is, what it holds, which casts use it.
    """
    from sender.console.lookup import find_image

    _show(output, find_image(client, image))


@images.command()
@click.argument("url")
@click.option("--name", metavar="NAME", help="What to call it until it was read.")
@api_command
def add(client: Client, output: Output, url: str, name: str | None) -> None:
    """Make a remote image known by its URL.

    URL is http(s):// or s3:// and names a FILE.dci. It is fetched when a cast needs it, or by `diskcast images fetch`.

    Example: diskcast images add https://images.example/lab.dci
    """
    from sender.store.records.images import Image

    image = client.create("/images", Image, {"url": url} | ({} if name is None else {"name": name}))
    output.done(f"{image.name} is known ({image.state.value})", image)


@images.command()
@click.argument("image")
@api_command
def fetch(client: Client, output: Output, image: str) -> None:
    """Fetch a remote image now.

    It goes to the daemon's cache; `diskcast images show` says how far it has come.
    """
    from sender.console.lookup import find_image, path
    from sender.store.records.images import Image

    found = find_image(client, image)
    fetched = client.order(path("images", found.image_id, "fetch"), Image)
    output.done(f"{fetched.name}: {fetched.state.value}", fetched)


@images.command()
@click.argument("image")
@api_command
def forget(client: Client, output: Output, image: str) -> None:
    """Forget a remote image, drop its copy.

    History keeps its name.
    """
    from sender.console.lookup import find_image, path

    found = find_image(client, image)
    client.remove(path("images", found.image_id))
    output.done(f"{found.name} is forgotten", image_id=found.image_id)


@images.command()
@api_command
def scan(client: Client, output: Output) -> None:
    """Look into the daemon's folders now."""
    client.order("/images/scan", object)
    output.done("the library's folders are looked through")


def _show(output: Output, image: Image) -> None:
    from sender.console.output import local_time

    fetched = ""
    if 0 < image.fetched_bytes < image.stored_bytes:
        fetched = f"{format_bytes(image.fetched_bytes)} ({image.fetched_bytes / image.stored_bytes:.0%})"
    output.record(
        image,
        [
            ("name", image.name),
            ("id", image.image_id),
            ("state", image.state.value),
            ("problem", image.problem),
            ("location", image.location),
            ("disk", format_bytes(image.raw_bytes) if image.raw_bytes else ""),
            ("file", format_bytes(image.stored_bytes) if image.stored_bytes else ""),
            ("fetched", fetched),
            ("blocks of", format_bytes(image.block_bytes) if image.block_bytes else ""),
            ("packed", local_time(image.packed_at)),
            ("known since", local_time(image.first_seen_at)),
            ("casts now", " ".join(image.in_use_by)),
        ],
    )
