"""The command ``disks``: the disks of this machine, each with a verdict as a target."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Final

import click

from protocol.errors import ConfigurationError, TargetIsSystemDiskError
from protocol.program.options import JSON_OPTION
from protocol.shared.units import format_bytes, parse_size_bytes
from receiver.disk.inventory.block_devices import BlockDevice, DeviceKind, DiskInventory
from receiver.disk.inventory.disk_contents import DiskContents, read_contents
from receiver.disk.inventory.holders import loop_file, mount_points
from receiver.disk.inventory.read_devices import read_inventory
from receiver.target.eligibility import ImageNeeds, Refusal, image_needs, incompatibility, judge, verdict_text

_READERS: Final = 8
"""Reader threads: sleeping disks wake up in parallel."""

_PIPE_COLUMNS: Final = 200
"""Width of the table in a pipe, where lines aren't folded for a screen."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Listed:
    disk: BlockDevice
    contents: DiskContents
    refusal: Refusal | None


@click.command()
@click.option(
    "--for",
    "image",
    type=click.Path(path_type=Path),
    metavar="FILE.dci",
    help="Judge the disks as targets of this image.",
)
@click.option("--size", metavar="SIZE", help="Judge the disks for an image of this size, such as 120G.")
@click.option("--all", "show_all", is_flag=True, help="Also list loop devices that are in use.")
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
    listed = _list_disks(read_inventory(), needs)
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
        shown = [
            each for each in listed if show_all or not (each.disk.kind is DeviceKind.LOOP and each.refusal)
        ]
        _print_table(shown)
        if len(shown) < len(listed):
            click.echo(
                f"Not listed: {len(listed) - len(shown)} loop devices that can't be targets; --all lists them."
            )


def _needs(image: Path | None, size: str | None) -> ImageNeeds:
    if image is not None and size is not None:
        raise ConfigurationError("--for and --size both set the size of the image: give one of them")
    if image is not None:
        from receiver.restore.image_source import open_image

        with open_image(image) as source:
            return image_needs(source.manifest, image)
    return ImageNeeds(parse_size_bytes(size) if size is not None else 0)


def _list_disks(inventory: DiskInventory, needs: ImageNeeds) -> list[_Listed]:
    probe = functools.cache(loop_file)

    def examine(disk: BlockDevice) -> _Listed:
        refusal = judge(disk, inventory, needs, probe=probe) or incompatibility(
            needs, disk.path, disk.sector_bytes, is_partition=False
        )
        if refusal is not None and refusal.error_class is TargetIsSystemDiskError:
            return _Listed(disk, DiskContents("the running system"), refusal)
        return _Listed(disk, read_contents(disk.path, disk.size_bytes, disk.sector_bytes), refusal)

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(examine, inventory.disks()))


def _disk_json(listed: _Listed, inventory: DiskInventory) -> dict[str, object]:
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


def _print_table(listed: list[_Listed]) -> None:
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
            _description(disk),
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


def _description(disk: BlockDevice) -> str:
    """Return the model, or else the kind, with the transport."""
    name = disk.model or (disk.kind.value if disk.kind is not DeviceKind.DISK else "")
    marks = [disk.transport] if disk.transport else []
    marks += ["removable"] if disk.removable else []
    return " ".join(filter(None, [name, f"({', '.join(marks)})" if marks else ""]))
