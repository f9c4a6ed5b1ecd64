"""``diskcast images diff`` and ``diskcast images prune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from protocol.program.options import WholeNumber
from protocol.shared.units import format_bytes
from sender.console.options import api_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sender.console.client import Client
    from sender.console.output import Column, Output
    from sender.imaging.contents.image_contents import FoundContents, PartitionContents
    from sender.imaging.contents.image_diff import ImageDiff, PartitionDiff
    from sender.store.records.pruning import PruneDecision

_Row = TypeVar("_Row")
_KEEP_LAST_DEFAULT = 3  # so that --help imports nothing; a test compares it
_DAYS_MAX = 3650


@click.command()
@click.argument("older")
@click.argument("newer")
@api_command
def diff(client: Client, output: Output, *, older: str, newer: str) -> None:
    """Compare two images: blocks, bytes and partitions.

    OLDER and NEWER are images of the library, or two .dci files, which need no daemon. "to send" is the data of a cast
    to a machine that has OLDER on its disk.

    \b
    Examples:
      diskcast images diff lab@2 lab@3
      diskcast images diff lab-june.dci lab-july.dci
      diskcast images diff lab@2 lab --json
    """  # noqa: D301
    from sender.console.lookup import find_image, path
    from sender.imaging.contents.image_diff import ImageDiff, diff_images

    files = [Path(text) for text in (older, newer)]
    if all(file.suffix == ".dci" and file.exists() for file in files):
        from sender.imaging.image_file import ImageFile

        with ImageFile.open(files[0]) as first, ImageFile.open(files[1]) as second:
            found = diff_images(first.manifest, second.manifest)
    else:
        older_id, newer_id = find_image(client, older).image_id, find_image(client, newer).image_id
        found = client.get(path("images", newer_id, "diff"), ImageDiff, {"older": older_id})
    _show_diff(output, found)


@click.command()
@click.option(
    "--keep-last",
    metavar="N",
    type=WholeNumber(1),
    default=_KEEP_LAST_DEFAULT,
    show_default=True,
    help="Keep the newest N versions of each name.",
)
@click.option(
    "--younger-than",
    metavar="DAYS",
    type=WholeNumber(0, _DAYS_MAX),
    default=0,
    show_default="no such rule",
    help="Keep images that are younger.",
)
@click.option("--apply/--dry-run", "apply", default=False, show_default=True, help="Delete what is shown.")
@api_command
def prune(client: Client, output: Output, *, keep_last: int, younger_than: int, apply: bool) -> None:
    """Show old images that can be deleted, or delete them.

    Images that are pinned, or used by a schedule or a cast, and the last image of each room are always kept. Only files
    in the daemon's own folder and cache are deleted.

    \b
    Examples:
      diskcast images prune --keep-last 2
      diskcast images prune --keep-last 2 --younger-than 90 --apply
    """  # noqa: D301
    from sender.console.output import Column
    from sender.labels import KEEP_REASONS
    from sender.store.records.pruning import PrunePreview

    policy: dict[str, int | str | bool | None] = {"keep_last": keep_last, "younger_than_days": younger_than}
    found = client.get("/images/prune", PrunePreview, policy)
    if apply and found.deleted:
        found = client.order("/images/prune", PrunePreview, {**policy, "preview": found.preview})
    columns: list[Column[PruneDecision]] = [
        Column("image", lambda each: f"{each.name}@{each.number}" if each.number else each.name, cut=True),
        Column("id", lambda each: each.image_id[:12]),
        Column("file", lambda each: format_bytes(each.stored_bytes) if each.stored_bytes else "", right=True),
        Column("decision", lambda each: ("deleted" if apply else "delete") if each.deleted else "keep"),
        Column("because", lambda each: ", ".join(KEEP_REASONS[reason] for reason in each.reasons)),
    ]
    _show_rows(output, [*found.deleted, *found.kept], columns)
    count = len(found.deleted)
    images = f"{count} image{'' if count == 1 else 's'} of {format_bytes(found.freed_bytes)}"
    output.done(f"deleted {images}" if apply else f"{images} would be deleted: run it with --apply", found)


def show_contents(output: Output, found: FoundContents) -> None:
    """Print the contents of an image as a table; nothing if it has no partitions."""
    from sender.console.output import Column, print_message
    from sender.imaging.contents.generalisation import Generalisation
    from sender.labels import GENERALISATIONS

    contents = found.contents
    if contents is None:
        print_message(found.problem or "its contents are being read: run the command again in a moment")
        return
    if contents.problem:
        print_message(contents.problem)
    if contents.generalisation is not Generalisation.NO_SYSTEM:
        print_message(GENERALISATIONS[contents.generalisation])

    columns: list[Column[PartitionContents]] = [
        Column("partition", lambda each: str(each.number or "disk")),
        Column("name", lambda each: each.name, cut=True),
        Column("filesystem", lambda each: each.filesystem or "unknown"),
        Column("label", lambda each: each.label, cut=True),
        Column("uuid", lambda each: each.uuid),
        Column("size", lambda each: format_bytes(each.size_bytes), right=True),
        Column(
            "free", lambda each: "" if each.free_bytes is None else format_bytes(each.free_bytes), right=True
        ),
        Column("system", lambda each: each.system, cut=True),
    ]
    _show_rows(output, contents.partitions, columns)


def warn_of_clones(client: Client, output: Output, image_id: str) -> None:
    """Warn of an image with an operating system that wasn't generalised; say nothing while its contents are unknown."""
    from protocol.errors import ServerRefusedError
    from sender.console.lookup import path
    from sender.console.output import emit, print_message
    from sender.imaging.contents.generalisation import Generalisation
    from sender.imaging.contents.image_contents import FoundContents
    from sender.labels import GENERALISATIONS

    try:
        contents = client.get(path("images", image_id, "contents"), FoundContents).contents
    except ServerRefusedError:  # an older daemon reads no contents
        return
    if contents is None or contents.generalisation is not Generalisation.NOT_GENERALISED:
        return
    text = f"warning: the image is {GENERALISATIONS[contents.generalisation]}"
    if output.json_lines:
        emit("warning", text=text)
    else:
        print_message(text)


def _show_diff(output: Output, found: ImageDiff) -> None:
    from sender.console.output import Column

    columns: list[Column[PartitionDiff]] = [
        Column("partition", lambda each: str(each.number)),
        Column("name", lambda each: each.name, cut=True),
        Column("filesystem", lambda each: each.filesystem),
        Column("size", lambda each: format_bytes(each.size_bytes), right=True),
        Column(
            "changed blocks",
            lambda each: f"{each.blocks.changed_count} of {each.blocks.block_count}",
            right=True,
        ),
        Column("changed", lambda each: format_bytes(each.blocks.changed_bytes), right=True),
        Column("to send", lambda each: format_bytes(each.blocks.sent_bytes), right=True),
        Column("place", lambda each: "moved or new" if each.moved else ""),
    ]
    _show_rows(output, found.partitions, columns)
    whole = found.whole
    text = (
        f"{whole.changed_count} of {whole.block_count} blocks changed ({format_bytes(whole.changed_bytes)}); to send: "
        f"{format_bytes(whole.sent_bytes)} of {format_bytes(whole.stored_bytes)}"
    )
    if found.identical:
        text = "the images are identical"
    elif not found.comparable:
        text += "; they have different block sizes, so everything is sent"
    output.done(text, found)


def _show_rows(output: Output, rows: Sequence[_Row], columns: Sequence[Column[_Row]]) -> None:
    """Print a table for people; the result line has the rows for scripts."""
    if rows and not output.json_lines:
        output.table(rows, columns)
