"""The command ``diskcast sign``: sign an image file, or carry its statement to an air-gapped signer and back."""

from __future__ import annotations

import dataclasses
import datetime
import errno
from pathlib import Path
from typing import Final

import click

from protocol.errors import ConfigurationError, UnsignedImageError
from protocol.trust.minisign import SIGNATURE_TEXT_BYTES_MAX, PublicKey, parse_signature_untrusted
from protocol.trust.statement import (
    STATEMENT_BYTES_MAX,
    STATEMENT_TITLE,
    ImageStatement,
    SignedStatement,
)
from sender.identity.key_options import read_public_key, signing_key_options
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

SIGNATURE_SUFFIX: Final = ".minisig"
"""Appended to a statement's file name, as minisign does."""

_path = click.Path(path_type=Path)


@click.command()
@click.argument("image_path", metavar="FILE", type=_path)
@click.option("--name", metavar="NAME", show_default="name of the image", help="Signed name of the image.")
@statement_options
@signing_key_options
@click.option(
    "--export", "export_path", type=_path, metavar="STATEMENT", help="Write the statement, unsigned."
)
@click.option(
    "--import", "import_path", type=_path, metavar="STATEMENT", help="Take a statement signed elsewhere."
)
@click.option("--public-key", metavar="KEY", help="Key of --import: a .pub file or its RW line.")
@click.option("--json", "json_lines", is_flag=True, help="Print one JSON object per line to stdout.")
def sign(
    image_path: Path,
    name: str | None,
    fields: StatementFields,
    key_path: Path | None,
    ask_passphrase: AskPassphrase,
    export_path: Path | None,
    import_path: Path | None,
    public_key: str | None,
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
      diskcast sign lab.dci --export lab.statement
      diskcast sign lab.dci --import lab.statement --public-key lab.pub
    """  # noqa: D301  click needs the backspace
    fields = dataclasses.replace(fields, name=name)
    if export_path is not None and import_path is not None:
        raise ConfigurationError("--export and --import are two steps: give one of them")
    if is_statement(image_path):
        _sign_statement_file(image_path, key_path, ask_passphrase, json_lines=json_lines)
        return
    with ImageFile.open(image_path) as image:
        header, image_name = image.header, image.manifest.name
    present = ImageSignature.of(header).statement
    if import_path is not None:
        signed, signer = read_signed_statement(import_path, public_key)
        check_statement(signed, signer, header.image_id)
    else:
        statement = fields.statement(
            header.image_id, image_name, datetime.datetime.now(datetime.UTC), present
        )
        if export_path is not None:
            export_statement(export_path, statement)
            _report(statement_path=str(export_path), json_lines=json_lines)
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


def export_statement(path: Path, statement: ImageStatement) -> None:
    """Write a statement for an air-gapped signer.

    Raises:
        ConfigurationError: the file can't be written.
    """
    _write(path, statement.encode())


def read_signed_statement(path: Path, public_key: str | None) -> tuple[SignedStatement, PublicKey]:
    """Read a statement and its signature ``PATH.minisig``, and check the signature.

    Args:
        path: the statement's file.
        public_key: file or line of the signer's public key.

    Raises:
        ConfigurationError: a file can't be read, or the key is missing.
        UnsignedImageError: the key didn't sign the statement.
    """
    if public_key is None:
        raise ConfigurationError(
            "--import needs --public-key: the signer's .pub file, or its line that starts with RW"
        )
    signer, _ = read_public_key(public_key)
    statement = _read(path, STATEMENT_BYTES_MAX)
    signature = _read(path.with_name(path.name + SIGNATURE_SUFFIX), SIGNATURE_TEXT_BYTES_MAX)
    signed = SignedStatement(statement, signature.decode("utf-8", "replace"))
    if parse_signature_untrusted(signed.signature).key_id != signer.key_id:
        raise UnsignedImageError(
            f"{path} is signed by another key than {signer.id_text}: give its --public-key"
        )
    return signed, signer


def _sign_statement_file(
    path: Path, key_path: Path | None, ask_passphrase: AskPassphrase, *, json_lines: bool
) -> None:
    """Sign an exported statement, as ``minisign -Sm`` does."""
    data = _read(path, STATEMENT_BYTES_MAX)
    key = (
        ensure_signing_key(None, ask_passphrase)[0]
        if key_path is None
        else load_signing_key(key_path, ask_passphrase)
    )
    signature_path = path.with_name(path.name + SIGNATURE_SUFFIX)
    _write(signature_path, signature_of(data, key).file_text().encode())
    _report(signature_path=str(signature_path), public_key=key.public.text, json_lines=json_lines)


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror}") from error
    if len(data) > bytes_max:
        raise ConfigurationError(f"{path} is too long: it may have at most {bytes_max} bytes")
    return data


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        fix = "free some space" if error.errno == errno.ENOSPC else "choose another file"
        raise ConfigurationError(f"can't write {path}: {error.strerror}; {fix}") from error


def _report(*, json_lines: bool, **paths: str) -> None:
    if json_lines:
        emit("result", ok=True, **paths)
    else:
        for name, value in paths.items():
            click.echo(f"{name.replace('_', ' ')}: {value}")
