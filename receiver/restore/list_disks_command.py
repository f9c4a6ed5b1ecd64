"""The command ``disks``: the disks of this machine, each with a verdict as a target."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import click

from protocol.errors import ConfigurationError
from protocol.program.options import JSON_OPTION
from protocol.shared.units import format_bytes, parse_size_bytes
from receiver.disk.inventory.block_devices import DiskInventory
from receiver.disk.inventory.holders import mount_points
from receiver.disk.inventory.read_devices import read_inventory
from receiver.restore.listed_disks import ListedDisk, describe_model, list_disks
from receiver.target.eligibility import ImageNeeds, image_needs, is_shown, verdict_text

_PIPE_COLUMNS: Final = 200
"""Width of the table in a pipe, where lines aren't folded for a screen."""


@click.command()
@click.option(
    "--for",
    "image",
    type=click.Path(path_type=Path),
    metavar="FILE.dci",
    help="Judge the disks as targets of this image.",
)
@click.option("--size", metavar="SIZE", help="Judge the disks for an image of this size, such as 120G.")
@click.option("--all", "show_all", is_flag=True, help="Also list optical drives and loop devices in use.")
@JSON_OPTION
def disks(image: Path | None, size: str | None, show_all: bool, as_json: bool) -> None:
    """List the disks of this machine with their content and a verdict: usable or refused, with the reason.

    Changes nothing. "usable" means that nothing holds the disk now: writing an image would overwrite everything on it.

    \b
    Examples:
      diskcast-agent disks
      diskcast-agent disks --for lab.dci
      diskcast-agent disks --size 120G --json
    """  # noqa: D301 - \b is click's mark
    needs = _needs(image, size)
    listed = list_disks(read_inventory(), needs)
    if as_json:
        inventory = read_inventory()
        for each in listed:
            click.echo(json.dumps(_disk_json(each, inventory)))
        usable = [str(each.disk.path) for each in listed if each.refusal is None]
        click.echo(
            json.dumps(
                {"event": "result", "ok": True, "exit_code": 0, "disks": len(listed), "usable": usable}
            )
        )
    else:
        shown = [each for each in listed if show_all or is_shown(each.disk, each.refusal)]
        _print_table(shown)
        if len(shown) < len(listed):
            click.echo(
                f"Not listed: {len(listed) - len(shown)} optical drives and loop devices in use; --all lists them."
            )


def _needs(image: Path | None, size: str | None) -> ImageNeeds:
    if image is not None and size is not None:
        raise ConfigurationError("--for and --size both set the size of the image: give one of them")
    if image is not None:
        from receiver.restore.image_source import open_image

        with open_image(image) as source:
            return image_needs(source.manifest, image)
    return ImageNeeds(parse_size_bytes(size) if size is not None else 0)


def _disk_json(listed: ListedDisk, inventory: DiskInventory) -> dict[str, object]:
    disk, refusal = listed.disk, listed.refusal
    return {
        "event": "disk",
        "path": str(disk.path),
        "kind": disk.kind.value,
        "size_bytes": disk.size_bytes,
        "model": disk.model,
        "serial": disk.serial,
        "wwn": disk.identity.wwn,
        "transport": disk.transport,
        "removable": disk.removable,
        "rotational": disk.rotational,
        "read_only": disk.read_only,
        "logical_sector_bytes": disk.sector_bytes,
        "physical_sector_bytes": disk.physical_sector_bytes,
        "holds": listed.contents.text,
        "incomplete_image": listed.contents.incomplete_image,
        "mount_points": mount_points(disk, inventory),
        "partitions": [
            {
                "path": str(partition.path),
                "number": partition.partition_number,
                "size_bytes": partition.size_bytes,
                "mount_points": mount_points(partition, inventory),
            }
            for partition in inventory.partitions_of(disk)
        ],
        "verdict": "refused" if refusal else "usable",
        "reason": refusal.reason if refusal else "",
        "fix": refusal.fix if refusal else "",
        "error_class": refusal.error_class.__name__ if refusal else "",
        "exit_code": refusal.error_class.exit_code if refusal else 0,
    }


def _print_table(listed: list[ListedDisk]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    if not listed:
        console.print("This machine has no disks.")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("disk", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for heading in ("model", "serial", "holds"):
        table.add_column(heading, overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for each in listed:
        disk = each.disk
        verdict = "[red]refused[/red]" if each.refusal else "[green]usable[/green]"
        cells = (
            disk.path,
            format_bytes(disk.size_bytes),
            describe_model(disk),
            disk.serial,
            each.contents.text,
        )
        table.add_row(*(escape(str(cell)) for cell in cells), verdict)
    console.print(table)
    for each in listed:
        if each.refusal is not None:
            console.print(
                f"[bold]{escape(str(each.disk.path))}[/bold] {escape(verdict_text(each.disk, each.refusal))}: "
                f"{escape(each.refusal.fix)}"
            )
