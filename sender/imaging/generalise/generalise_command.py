"""The command ``images generalise``: an image without the traces of the machine on which it was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol.program.command_line import sigterm_as_interrupt
from protocol.program.options import JSON_OPTION
from sender.identity.key_options import signing_key_options
from sender.imaging.statement_fields import StatementFields, statement_options

if TYPE_CHECKING:
    from sender.identity.signing_keys import AskPassphrase

_path = click.Path(path_type=Path)


@click.command()
@click.argument("image_path", metavar="FILE.dci", type=_path)
@click.option("-o", "--output", type=_path, required=True, metavar="FILE.dci", help="Image file to write.")
@click.option(
    "--allow-unsandboxed",
    is_flag=True,
    help="Edit filesystems without Landlock; trusted images only.",
)
@statement_options
@signing_key_options
@click.option("--no-sign", is_flag=True, help="Don't sign the image.")
@JSON_OPTION
def generalise(
    image_path: Path,
    output: Path,
    fields: StatementFields,
    key_path: Path | None,
    ask_passphrase: AskPassphrase,
    *,
    allow_unsandboxed: bool,
    no_sign: bool,
    as_json: bool,
) -> None:
    """Remove from an image everything that must differ between clones, and sign the result.

    Linux on ext2, ext3 and ext4: machine-id, SSH host keys, DHCP leases, logs, shell histories, cloud-init's state,
    settings of single network cards, random seed, mail, crash dumps, temporary files, swap. Free space and the journal
    are zeroed. An image whose Windows wasn't generalised by Sysprep is refused. Needs no root and no mount, but space
    for a copy of the filesystems beside the output. Signed version, tags and expiry are those of the old image unless
    they are given.

    \b
    Examples:
      diskcast images generalise lab.dci -o lab-general.dci
      diskcast images generalise lab.dci -o lab-general.dci --json
    """  # noqa: D301
    from sender.identity.signing_keys import ensure_signing_key
    from sender.imaging.generalise.generalise_image import generalise_image
    from sender.imaging.generalise.generalise_report import emit_report, report_text
    from sender.imaging.image_file import ImageFile
    from sender.imaging.image_progress import show_phases

    with ImageFile.open(image_path) as image:
        key = None if no_sign else ensure_signing_key(key_path, ask_passphrase)[0]
        sign = fields.signer(image, key)
        with sigterm_as_interrupt(), show_phases(json_lines=as_json) as updates:
            result = generalise_image(
                image,
                output,
                sign,
                allow_unsandboxed=allow_unsandboxed,
                on_copy=updates("reading"),
                on_write=updates("writing"),
            )
        if as_json:
            emit_report(result, is_new=result.image_id != image.header.image_id)
        else:
            click.echo(report_text(result, is_new=result.image_id != image.header.image_id))
