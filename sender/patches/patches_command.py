"""The commands ``patches``: build, show and sign the patches of a room's machines."""

from __future__ import annotations

import time
from pathlib import Path

import click

from protocol.program.command_line import sigterm_as_interrupt
from protocol.program.options import JSON_OPTION
from protocol.shared.units import format_bytes, format_duration
from sender.identity.key_options import parse_time_option, signing_key_options
from sender.identity.signing_keys import AskPassphrase, ensure_signing_key
from sender.imaging.image_file import ImageFile
from sender.imaging.image_progress import emit
from sender.imaging.statement_fields import signed_name
from sender.imaging.statement_transfer import Transfer, transfer_options, write_file
from sender.patches.backends.open_backend import open_backend
from sender.patches.machines_file import load_machines
from sender.patches.patch_directory import (
    INDEX_NAME,
    SET_NAME,
    build_patches,
    read_patch,
    read_patches,
    write_private,
)
from sender.patches.patch_signing import import_signature, patch_set_of, sign_patch_set
from sender.patches.template import load_template

_path = click.Path(path_type=Path)
_ID_DIGITS = 12


@click.group()
def patches() -> None:
    """Build machine patches: the blocks of an image that differ for one machine, such as its host name.

    \b
    Examples:
      diskcast patches build lab.dci --template lab.toml --machines lab.csv -o lab-patches
      diskcast patches show lab-patches/pc-01.dcp
      diskcast patches sign lab-patches
    """  # noqa: D301


@patches.command()
@click.argument("image_path", metavar="FILE.dci", type=_path)
@click.option(
    "--template", "template_path", type=_path, required=True, metavar="FILE.toml", help="The template."
)
@click.option(
    "--machines",
    "machines_path",
    type=_path,
    required=True,
    metavar="FILE.csv",
    help="Machines and variables.",
)
@click.option("-o", "--output", type=_path, required=True, metavar="FOLDER", help="Folder to write.")
@JSON_OPTION
def build(image_path: Path, template_path: Path, machines_path: Path, output: Path, *, as_json: bool) -> None:
    """Build the patch of each machine of a CSV file from a template, for one image.

    The settings go into the image's seed partition, or with [filesystem] in the template into a filesystem.

    Writes FOLDER/NAME.dcp for each machine and FOLDER/index.json. The same image, template and machines always give
    the same patches. All machines are checked before the first file is written. The files may hold secrets, and only
    their owner can read them.

    \b
    Examples:
      diskcast patches build lab.dci --template lab.toml --machines lab.csv -o lab-patches
      diskcast patches build lab.dci --template lab.toml --machines lab.csv -o lab-patches --json
    """  # noqa: D301
    started_s = time.monotonic()
    template, machines = load_template(template_path), load_machines(machines_path)
    with ImageFile.open(image_path) as image, sigterm_as_interrupt():
        built = build_patches(open_backend(image, template), template, machines, output)
        image_id = image.manifest.image_id.hex()
    duration_s = time.monotonic() - started_s
    if as_json:
        emit(
            "result",
            ok=True,
            image_id=image_id,
            directory=str(output),
            index=str(output / INDEX_NAME),
            machines=len(built),
            bytes=sum(one.bytes for one in built),
            duration_s=round(duration_s, 3),
        )
        return
    for one in built:
        size = f"{one.blocks} {'block' if one.blocks == 1 else 'blocks'}, {one.bytes} bytes"
        click.echo(f"{one.name:<16} {one.hostname:<16} {one.patch_id[:_ID_DIGITS]}  {size}")
    total = format_bytes(sum(one.bytes for one in built))
    click.echo(f"{output}: {len(built)} patches, {total}, in {format_duration(duration_s)}")


@patches.command()
@click.argument("patch_path", metavar="FILE.dcp", type=_path)
@JSON_OPTION
def show(patch_path: Path, *, as_json: bool) -> None:
    """Show a patch: machine, image, id and blocks, never its content.

    \b
    Examples:
      diskcast patches show lab-patches/pc-01.dcp
      diskcast patches show lab-patches/pc-01.dcp --json
    """  # noqa: D301
    patch = read_patch(patch_path)
    blocks = patch.blocks.tolist()
    if as_json:
        emit(
            "result",
            ok=True,
            patch_id=patch.patch_id.hex(),
            image_id=patch.image_id.hex(),
            machine_id=patch.machine_id,
            block_bytes=patch.block_bytes,
            blocks=blocks,
            bytes=len(patch.data),
        )
        return
    click.echo(
        f"machine    {patch.machine_id}\n"
        f"patch id   {patch.patch_id.hex()}\n"
        f"image id   {patch.image_id.hex()}\n"
        f"blocks     {', '.join(map(str, blocks))} of {format_bytes(patch.block_bytes)}\n"
        f"size       {format_bytes(len(patch.data))}"
    )


@patches.command()
@click.argument("directory", metavar="FOLDER", type=_path)
@click.option("--name", metavar="NAME", show_default="name of FOLDER", help="Signed name of the set.")
@click.option("--not-after", metavar="TIME", help="Time from which agents refuse the set.")
@signing_key_options
@transfer_options
@JSON_OPTION
def sign(
    directory: Path,
    name: str | None,
    not_after: str | None,
    key_path: Path | None,
    ask_passphrase: AskPassphrase,
    transfer: Transfer,
    *,
    as_json: bool,
) -> None:
    """Sign the patches of a folder as one set, for images that are signed with --patches signed.

    Writes FOLDER/patches.signed. To sign on a machine without a network, --export the statement, sign it there with
    `minisign -Sm STATEMENT`, and --import it with STATEMENT.minisig.

    \b
    Examples:
      diskcast patches sign lab-patches --not-after 2027-12-31
      diskcast patches sign lab-patches --export lab.patches
      diskcast patches sign lab-patches --import lab.patches --public-key lab.pub
    """  # noqa: D301
    set_name = signed_name(directory.resolve().name) if name is None else name
    patch_set = patch_set_of(read_patches(directory), set_name, parse_time_option(not_after))
    statement = patch_set.statement()
    written = directory / SET_NAME
    if transfer.export_path is not None:
        written = transfer.export_path
        write_file(written, statement)
    elif transfer.import_path is not None:
        signed = import_signature(patch_set, transfer.import_path, transfer.public_key)
        write_private(written, signed.to_bytes())
    else:
        key, _ = ensure_signing_key(key_path, ask_passphrase)
        write_private(written, sign_patch_set(patch_set, key).to_bytes())
    if as_json:
        emit("result", ok=True, file=str(written), name=set_name, machines=len(patch_set.patch_ids))
    else:
        click.echo(f"{written}: {len(patch_set.patch_ids)} patches of the set {set_name}")
