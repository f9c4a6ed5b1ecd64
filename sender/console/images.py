"""``diskcast images``: the daemon's image library."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol.shared.units import format_bytes
from sender.console.image_transfer import download, export, import_image
from sender.console.image_upkeep import diff, prune, show_contents
from sender.console.options import api_command, list_options
from sender.identity.key_options import signing_key_options
from sender.imaging.generalise.generalise_command import generalise
from sender.imaging.seed.prepare_command import prepare
from sender.imaging.statement_fields import StatementFields, statement_options
from sender.imaging.statement_transfer import Transfer, transfer_options

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output
    from sender.identity.signing_keys import AskPassphrase
    from sender.store.records.images import Image

_ID_LETTERS = 12


@click.group()
def images() -> None:
    """Manage the daemon's image library: files in its folders, and remote images.

    IMAGE is the name of an image, which means its newest version, a version such as lab@3 or lab@latest, its file name,
    its id, or the first 8 or more digits of its id.

    \b
    Examples:
      diskcast images list
      diskcast images show win11-lab
      diskcast images add https://images.example/lab.dci
      diskcast images import lab.qcow2 --name lab
    """  # noqa: D301


@images.command("list")
@list_options
@api_command
def list_images(client: Client, output: Output, *, limit: int, everything: bool) -> None:
    """List the images of the library.

    \b
    Examples:
      diskcast images list
      diskcast images list --all --json
    """  # noqa: D301
    from sender.console.output import Column, local_time, state_text
    from sender.labels import IMAGE_STATES
    from sender.store.records.images import Image, image_reference

    columns: list[Column[Image]] = [
        Column("name", image_reference, cut=True),
        Column("id", lambda image: image.image_id[:_ID_LETTERS]),
        Column("state", lambda image: state_text(IMAGE_STATES[image.state])),
        Column("disk", lambda image: format_bytes(image.raw_bytes) if image.raw_bytes else "", right=True),
        Column(
            "file", lambda image: format_bytes(image.stored_bytes) if image.stored_bytes else "", right=True
        ),
        Column("packed", lambda image: local_time(image.packed_at)),
        Column("signed version", lambda image: image.version or ("unsigned" if image.raw_bytes else "")),
        Column("note", lambda image: image.note.partition("\n")[0], cut=True),
    ]
    output.listed(
        "image",
        client.listed("/images", Image),
        columns,
        limit=None if everything else limit,
        nothing="no images: put NAME.dci files into the daemon's folder, or add a URL with `diskcast images add`",
    )


@images.command()
@click.argument("image")
@api_command
def show(client: Client, output: Output, image: str) -> None:
    """Show an image: its location, sizes, origin, contents, and the casts that use it.

    \b
    Examples:
      diskcast images show win11-lab
      diskcast images show 9f86d081 --json
    """  # noqa: D301
    from protocol.errors import ServerRefusedError
    from sender.console.client import to_json
    from sender.console.lookup import find_image, path
    from sender.console.output import emit
    from sender.imaging.contents.image_contents import ContentsState, FoundContents

    found = find_image(client, image)
    try:
        contents = client.get(path("images", found.image_id, "contents"), FoundContents)
    except ServerRefusedError as error:  # an older daemon reads no contents
        contents = FoundContents(ContentsState.UNAVAILABLE, problem=str(error))
    if output.json_lines:
        emit("contents", **to_json(contents))
    _show(output, found)
    if not output.json_lines:
        show_contents(output, contents)


@images.command()
@click.argument("url")
@click.option("--name", metavar="NAME", help="Name to use until the image has been read.")
@api_command
def add(client: Client, output: Output, url: str, name: str | None) -> None:
    """Add a remote image by its URL.

    URL is http://, https:// or s3:// and names a FILE.dci. The image is fetched when a cast needs it, or with
    `diskcast images fetch`.

    \b
    Examples:
      diskcast images add https://images.example/lab.dci
      diskcast images add s3://images/lab.dci --name lab
    """  # noqa: D301
    from sender.labels import IMAGE_STATES
    from sender.store.records.images import Image

    image = client.create("/images", Image, {"url": url} | ({} if name is None else {"name": name}))
    output.done(f"added {image.name} ({IMAGE_STATES[image.state].text.lower()})", image)


@images.command()
@click.argument("image")
@api_command
def fetch(client: Client, output: Output, image: str) -> None:
    """Fetch a remote image into the daemon's cache now.

    `diskcast images show` shows the progress.

    \b
    Examples:
      diskcast images fetch lab
      diskcast images fetch lab --json
    """  # noqa: D301
    from sender.console.lookup import find_image, path
    from sender.labels import IMAGE_STATES
    from sender.store.records.images import Image

    found = find_image(client, image)
    fetched = client.order(path("images", found.image_id, "fetch"), Image)
    output.done(f"{fetched.name}: {IMAGE_STATES[fetched.state].text.lower()}", fetched)


@images.command()
@click.argument("image")
@click.option("--name", metavar="NAME", show_default="name of the image", help="Signed name of the image.")
@statement_options
@signing_key_options
@transfer_options
@api_command
def sign(
    client: Client,
    output: Output,
    image: str,
    name: str | None,
    fields: StatementFields,
    key_path: Path | None,
    ask_passphrase: AskPassphrase,
    transfer: Transfer,
) -> None:
    """Sign an image of the library with your key; the daemon has none.

    The statement is fetched, signed on this machine, and its signature uploaded. The key never leaves this machine. For
    a key on a machine without a network, --export the statement, sign it there with `minisign -Sm STATEMENT`, and
    --import it with STATEMENT.minisig.

    \b
    Examples:
      diskcast images sign win11-lab
      diskcast images sign win11-lab --tag uefi --not-after 2027-12-31 --key lab.key
      diskcast images sign win11-lab --export lab.statement
      diskcast images sign win11-lab --import lab.statement --public-key lab.pub
    """  # noqa: D301
    from sender.console.image_signing import sign_library_image
    from sender.console.lookup import find_image

    found = find_image(client, image)
    fields = dataclasses.replace(fields, name=name)
    signed = sign_library_image(client, found, fields, transfer, key_path, ask_passphrase)
    if signed is None:
        output.done(f"wrote {transfer.export_path}: sign it, then --import it", found)
    else:
        output.done(f"{signed.name} is signed as version {signed.version} by the key {signed.signer}", signed)


@images.command()
@click.argument("image")
@click.argument("text", required=False)
@click.option("--clear", is_flag=True, help="Remove the note.")
@api_command
def note(client: Client, output: Output, *, image: str, text: str | None, clear: bool) -> None:
    """Write a note on an image, or show it.

    Every operator sees the note. TEXT replaces the present one.

    \b
    Examples:
      diskcast images note lab@3 "Office 2027, for the exams in June"
      diskcast images note lab@3
      diskcast images note lab@3 --clear
    """  # noqa: D301
    from sender.console.lookup import find_image, path
    from sender.store.records.images import Image, image_reference

    found = find_image(client, image)
    if text is None and not clear:
        output.done(found.note or f"{image_reference(found)} has no note", found)
        return
    if text is not None and clear:
        raise click.UsageError("give TEXT or --clear, not both")
    changed = client.change(path("images", found.image_id), Image, {"note": text or ""})
    output.done(f"{image_reference(changed)}: {changed.note or 'the note was removed'}", changed)


@images.command()
@click.argument("image")
@api_command
def pin(client: Client, output: Output, image: str) -> None:
    """Keep an image when others are pruned.

    \b
    Examples:
      diskcast images pin lab@3
      diskcast images pin lab@3 --json
    """  # noqa: D301
    _set_pin(client, output, image, pinned=True)


@images.command()
@click.argument("image")
@api_command
def unpin(client: Client, output: Output, image: str) -> None:
    """Let an image be pruned again.

    \b
    Examples:
      diskcast images unpin lab@3
      diskcast images unpin lab@3 --json
    """  # noqa: D301
    _set_pin(client, output, image, pinned=False)


@images.command()
@click.argument("image")
@api_command
def forget(client: Client, output: Output, image: str) -> None:
    """Forget a remote image and delete its cached copy.

    History keeps its name.

    \b
    Examples:
      diskcast images forget lab
      diskcast images forget 9f86d081 --json
    """  # noqa: D301
    from sender.console.lookup import find_image, path

    found = find_image(client, image)
    client.remove(path("images", found.image_id))
    output.done(f"forgot {found.name}", image_id=found.image_id)


@images.command()
@api_command
def scan(client: Client, output: Output) -> None:
    """Scan the daemon's image folders and remotes now.

    \b
    Examples:
      diskcast images scan
      diskcast images scan --json
    """  # noqa: D301
    client.order("/images/scan", object)
    output.done("scanning the library")


images.add_command(import_image)
images.add_command(download)
images.add_command(export)
images.add_command(diff)
images.add_command(prune)
images.add_command(prepare)
images.add_command(generalise)


def _show(output: Output, image: Image) -> None:
    from sender.console.output import local_time, state_text
    from sender.labels import IMAGE_STATES, origin_text

    fetched = ""
    if 0 < image.fetched_bytes < image.stored_bytes:
        fetched = f"{format_bytes(image.fetched_bytes)} ({image.fetched_bytes / image.stored_bytes:.0%})"
    output.record(
        image,
        [
            ("name", image.name),
            ("version", f"{image.number}{' (latest)' if image.latest else ''}" if image.number else ""),
            ("note", image.note),
            ("made from", origin_text(image.origin)),
            ("added by", image.added_by),
            ("pinned", "yes: pruning keeps it" if image.pinned else ""),
            ("id", image.image_id),
            ("state", state_text(IMAGE_STATES[image.state])),
            ("problem", image.problem),
            ("location", image.location),
            ("disk", format_bytes(image.raw_bytes) if image.raw_bytes else ""),
            ("file", format_bytes(image.stored_bytes) if image.stored_bytes else ""),
            ("fetched", fetched),
            ("block size", format_bytes(image.block_bytes) if image.block_bytes else ""),
            ("packed", local_time(image.packed_at)),
            ("signed as", image.signed_name),
            (
                "signed version",
                image.version or f"unsigned; sign it with `diskcast images sign {image.name}`",
            ),
            ("signer", image.signer),
            ("added", local_time(image.first_seen_at)),
            ("casts now", " ".join(image.in_use_by)),
        ],
    )


def _set_pin(client: Client, output: Output, text: str, *, pinned: bool) -> None:
    from sender.console.lookup import find_image, path
    from sender.store.records.images import Image, image_reference

    found = find_image(client, text)
    changed = client.change(path("images", found.image_id), Image, {"pinned": pinned})
    output.done(f"{image_reference(changed)} is {'pinned' if pinned else 'not pinned any more'}", changed)
