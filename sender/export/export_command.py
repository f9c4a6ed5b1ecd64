"""The command ``export``."""

from __future__ import annotations

from pathlib import Path

import click

from protocol.program.command_line import sigterm_as_interrupt
from protocol.program.options import JSON_OPTION
from protocol.shared.units import format_bytes, format_duration
from sender.export.export_format import ExportFormat, export_format
from sender.export.export_image import export_image
from sender.imaging.image_file import ImageFile
from sender.imaging.image_progress import emit, show_progress

_path = click.Path(path_type=Path)


@click.command()
@click.argument("image_path", metavar="FILE.dci", type=_path)
@click.option("-o", "--output", type=_path, required=True, metavar="FILE", help="File or directory to write.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice([str(kind) for kind in ExportFormat]),
    show_default="by the ending of FILE",
    help="Format of FILE.",
)
@click.option("--force", is_flag=True, help="Replace an existing FILE.")
@JSON_OPTION
def export(image_path: Path, output: Path, format_name: str | None, *, force: bool, as_json: bool) -> None:
    """Export an image to another format, for virtual machines and other programs.

    Each block is checked against its hashes; FILE appears only when it is complete. Free space that the image doesn't
    hold becomes zeros. If the image records the SHA-256 of the disk (`pack --every-byte`), a raw export is compared
    with it, and FILE.sha256 is written for `sha256sum --check`.

    The format `clonezilla` writes a directory that Clonezilla restores, without free space.

    \b
    Examples:
      diskcast export lab.dci -o lab.qcow2
      diskcast export lab.dci -o lab.img --format raw
      diskcast export lab.dci -o lab.raw.zst --json
      diskcast export lab.dci -o /srv/partimag/lab --format clonezilla
    """  # noqa: D301
    kind = export_format(output, format_name)
    with (
        ImageFile.open(image_path) as image,
        sigterm_as_interrupt(),
        show_progress("exporting", json_lines=as_json) as update,
    ):
        result = export_image(image, output, kind, replace=force, on_progress=update)
    if as_json:
        emit(
            "result",
            ok=True,
            output=str(result.path),
            format=kind,
            file_bytes=result.file_bytes,
            unused_bytes=result.unused_bytes,
            source_sha256=result.sha256.hex() if result.sha256 else None,
            duration_s=round(result.duration_s, 3),
        )
        return
    click.echo(
        f"{result.path}: {kind}, {format_bytes(result.file_bytes)} in {format_duration(result.duration_s)}"
    )
    if result.unused_bytes and kind is not ExportFormat.CLONEZILLA:
        click.echo(
            f"{format_bytes(result.unused_bytes)} of free space, which the image doesn't hold, read as zeros"
        )
    if result.sha256 is not None:
        click.echo(f"SHA-256 of the disk, as recorded: {result.sha256.hex()}")
