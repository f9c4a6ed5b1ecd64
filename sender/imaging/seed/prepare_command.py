"""The command ``images prepare``: an image with a seed partition."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol.program.command_line import sigterm_as_interrupt
from protocol.program.options import JSON_OPTION
from protocol.shared.units import format_bytes
from sender.identity.key_options import signing_key_options
from sender.imaging.statement_fields import StatementFields, statement_options

if TYPE_CHECKING:
    from sender.identity.signing_keys import AskPassphrase

_path = click.Path(path_type=Path)


@click.command()
@click.argument("image_path", metavar="FILE.dci", type=_path)
@click.option("-o", "--output", type=_path, required=True, metavar="FILE.dci", help="Image file to write.")
@statement_options
@signing_key_options
@click.option("--no-sign", is_flag=True, help="Don't sign the image.")
@JSON_OPTION
def prepare(
    image_path: Path,
    output: Path,
    fields: StatementFields,
    key_path: Path | None,
    ask_passphrase: AskPassphrase,
    *,
    no_sign: bool,
    as_json: bool,
) -> None:
    """Add a seed partition to an image file, for the settings of single machines, and sign it.

    The new image has the same partitions and one more of 4 MiB, named diskcast-seed: in a free gap of the disk, or
    behind its end, which moves by 5 MiB then. Machine patches (`diskcast patches build`) fill it. Signed version,
    tags and expiry are those of the old image unless they are given.

    \b
    Examples:
      diskcast images prepare lab.dci -o lab-seed.dci --patches daemon
      diskcast images prepare lab.dci -o lab-seed.dci --patches signed --json
    """  # noqa: D301
    from sender.identity.signing_keys import ensure_signing_key
    from sender.imaging.image_file import ImageFile
    from sender.imaging.image_progress import emit, show_progress
    from sender.imaging.seed.prepare_image import prepare_image

    with ImageFile.open(image_path) as image:
        key = None if no_sign else ensure_signing_key(key_path, ask_passphrase)[0]
        sign = fields.signer(image, key)
        with sigterm_as_interrupt(), show_progress("copying", json_lines=as_json) as update:
            result = prepare_image(image, output, sign, update)
    if as_json:
        emit(
            "result",
            ok=True,
            image=str(result.path),
            image_id=result.image_id.hex(),
            seed_partition=result.plan.number,
            raw_bytes=result.plan.disk_bytes,
            changed_blocks=result.changed_blocks,
        )
        return
    click.echo(
        f"{result.path}: seed partition {result.plan.number}, disk of {format_bytes(result.plan.disk_bytes)}\n"
        f"image id   {result.image_id.hex()}"
    )
