"""The command ``diskcast keygen``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from sender.identity.key_options import PASSPHRASE_FILE_OPTION, prompt_passphrase, read_passphrase
from sender.identity.signing_keys import create_signing_key, default_key_path, public_key_path


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.key",
    show_default="~/.config/diskcast/signing.key",
    help="Secret key file to write; the public key is FILE.pub.",
)
@PASSPHRASE_FILE_OPTION
@click.option("--no-passphrase", is_flag=True, help="Don't encrypt the key, and don't ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
def keygen(output: Path | None, passphrase_file: Path | None, *, no_passphrase: bool, as_json: bool) -> None:
    """Make a key pair that signs images, in minisign's format.

    The passphrase is asked on the terminal; an empty one leaves the key unencrypted. Back up FILE.key: machines that
    trust this key accept images of no other.

    \b
    Examples:
      diskcast keygen
      diskcast keygen -o lab-2027.key --passphrase-file /run/secrets/lab
      diskcast keygen --no-passphrase --json
    """  # noqa: D301  click needs the backspace
    path = output or default_key_path()
    passphrase = ""
    if passphrase_file is not None:
        passphrase = read_passphrase(passphrase_file)
    elif not no_passphrase and sys.stdin.isatty():
        passphrase = prompt_passphrase("Passphrase (empty for none)", confirm=True)
    key = create_signing_key(path, passphrase)
    public_path = public_key_path(path)
    if as_json:
        result = {
            "event": "result",
            "ok": True,
            "exit_code": 0,
            "key_id": key.public.id_text,
            "public_key": key.public.text,
            "encrypted": bool(passphrase),
            "secret_key_path": str(path),
            "public_key_path": str(public_path),
        }
        click.echo(json.dumps(result))
        return
    click.echo(
        f"secret key  {path} ({'encrypted' if passphrase else 'not encrypted'}): back it up, and show nobody"
    )
    click.echo(f"public key  {public_path}")
    click.echo(f"key id      {key.public.id_text}")
    click.echo("Agents trust it with:")
    click.echo(f"  --trust-key {key.public.text}")
