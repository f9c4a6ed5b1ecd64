"""The command ``diskcast sign``: sign an image file, or carry its statement to an air-gapped signer and back."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import click

from protocol.trust.statement import (
    STATEMENT_BYTES_MAX,
    STATEMENT_TITLE,
)
from sender.identity.key_options import signing_key_options
from sender.identity.signing_keys import AskPassphrase, ensure_signing_key, load_signing_key
from sender.imaging.image_file import ImageFile
from sender.imaging.image_progress import emit
from sender.imaging.image_signature import ImageSignature, check_statement
from sender.imaging.signature_page import write_signature
from sender.imaging.statement_fields import (
    StatementFields,
    sign_statement,
    signature_of,
    statement_options,
)
from sender.imaging.statement_transfer import (
    SIGNATURE_SUFFIX,
    Transfer,
    export_statement,
    read_file,
    read_signed_statement,
    transfer_options,
    write_file,
)

_path = click.Path(path_type=Path)


@click.command()
@click.argument("image_path", metavar="FILE", type=_path)
@click.option("--name", metavar="NAME", show_default="name of the image", help="Signed name of the image.")
@statement_options
@signing_key_options
@transfer_options
@click.option("--json", "json_lines", is_flag=True, help="Print one JSON object per line to stdout.")
def sign(
    image_path: Path,
    name: str | None,
    fields: StatementFields,
    key_path: Path | None,
    ask_passphrase: AskPassphrase,
    transfer: Transfer,
    *,
    json_lines: bool,
) -> None:
    """Sign an image file, again if it is signed already.

    Only the header page changes: a cast of the file continues, and the image keeps its id. To sign on a machine
    without a network, --export the statement, sign it there with `minisign -Sm STATEMENT` or `diskcast sign
    STATEMENT`, and --import it with STATEMENT.minisig.

    \b
    Examples:
      diskcast sign lab.dci
      diskcast sign lab.dci --key lab.key --image-version 7 --tag uefi --not-after 2027-12-31
      diskcast sign lab.dci --patches daemon
      diskcast sign lab.dci --export lab.statement
      diskcast sign lab.dci --import lab.statement --public-key lab.pub
    """  # noqa: D301  click needs the backspace
    fields = dataclasses.replace(fields, name=name)
    if is_statement(image_path):
        _sign_statement_file(image_path, key_path, ask_passphrase, json_lines=json_lines)
        return
    with ImageFile.open(image_path) as image:
        header, image_name = image.header, image.manifest.name
    present = ImageSignature.of(header).statement
    if transfer.import_path is not None:
        signed, signer = read_signed_statement(transfer.import_path, transfer.public_key)
        check_statement(signed, signer, header.image_id)
    else:
        statement = fields.statement(
            header.image_id, image_name, datetime.datetime.now(datetime.UTC), present
        )
        if transfer.export_path is not None:
            export_statement(transfer.export_path, statement)
            _report(statement_path=str(transfer.export_path), json_lines=json_lines)
            return
        key, _ = ensure_signing_key(key_path, ask_passphrase)
        signed, signer = sign_statement(statement, key), key.public
    signature = ImageSignature.of(write_signature(image_path, signed, signer))
    if json_lines:
        emit("result", ok=True, image=str(image_path), signature=signature.to_json())
    else:
        click.echo("\n".join(signature.lines()))


def is_statement(path: Path) -> bool:
    """Return whether a file is a statement rather than an image."""
    try:
        with path.open("rb") as file:
            return file.read(len(STATEMENT_TITLE)) == STATEMENT_TITLE.encode("ascii")
    except OSError:
        return False


def _sign_statement_file(
    path: Path, key_path: Path | None, ask_passphrase: AskPassphrase, *, json_lines: bool
) -> None:
    """Sign an exported statement, as ``minisign -Sm`` does."""
    data = read_file(path, STATEMENT_BYTES_MAX)
    key = (
        ensure_signing_key(None, ask_passphrase)[0]
        if key_path is None
        else load_signing_key(key_path, ask_passphrase)
    )
    signature_path = path.with_name(path.name + SIGNATURE_SUFFIX)
    write_file(signature_path, signature_of(data, key).file_text().encode())
    _report(signature_path=str(signature_path), public_key=key.public.text, json_lines=json_lines)


def _report(*, json_lines: bool, **paths: str) -> None:
    if json_lines:
        emit("result", ok=True, **paths)
    else:
        for name, value in paths.items():
            click.echo(f"{name.replace('_', ' ')}: {value}")
