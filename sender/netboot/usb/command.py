"""The command ``diskcast netboot usb``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from protocol.control.boot_parameters import LiveMode
from protocol.errors import ConfigurationError
from protocol.shared.units import format_bytes
from sender.netboot.default_medium import open_medium
from sender.netboot.usb.stick import DISC_SUFFIX, StickPlan, write_stick

_STICK_SUFFIX: Final = ".img"
_TOKEN_BYTES_MAX: Final = 4096


@click.command()
@click.argument("medium", metavar="[DIR]", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Image to write: FILE.img for a stick, FILE.iso for a disc or stick.",
)
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    show_default="that of DIR",
    help="URL of a daemon, for the agent; repeatable.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with a token of the role enrol, to put on the stick.",
)
@click.option(
    "--mode",
    type=click.Choice([LiveMode.MENU.value, LiveMode.RUN.value]),
    show_default="run with a token, else menu",
    help="Entry that starts without a key press.",
)
def usb(
    medium: Path | None, output: Path, servers: tuple[str, ...], token_file: Path | None, mode: str | None
) -> None:
    """Write the boot medium in DIR, made by `diskcast netboot build`, as a USB stick.

    It starts by BIOS, UEFI and Secure Boot, on networks where nothing may be changed. The entry menu asks a technician.
    The entry run waits for casts of the daemon; for this the agent needs a token that enrols machines, which everyone
    who has the stick can read: make one for one room that expires.

    \b
    Examples:
      diskcast netboot usb -o stick.img
      diskcast tokens create stick --role enrol --room lab-1 --expires 8h --output enrol.token
      diskcast netboot usb boot -o stick.img --server https://10.0.0.5:7400 --token-file enrol.token
    """  # noqa: D301
    if output.suffix not in (_STICK_SUFFIX, DISC_SUFFIX):
        raise ConfigurationError(
            f"{output} has an unknown suffix: name it FILE.img for a stick, FILE.iso for a disc"
        )
    if output.is_block_device():
        raise ConfigurationError(f"{output} is a device: write an image, then copy it with dd")
    opened = open_medium(medium)
    token = _read_token(token_file) if token_file else ""
    chosen = LiveMode(mode) if mode else LiveMode.RUN if token else LiveMode.MENU
    if chosen is LiveMode.RUN and not (servers or opened.record.servers):
        raise ConfigurationError(f"{opened.directory} has no daemon built in: give --server, or --mode menu")
    write_stick(StickPlan(opened, output.absolute(), chosen, servers, token))
    secret = "; it holds the token, so keep it as a secret" if token else ""
    click.echo(f"{output}: {format_bytes(output.stat().st_size)}, starts with {chosen}{secret}")


def _read_token(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            token = file.read(_TOKEN_BYTES_MAX).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read the token in {path}: {error}") from error
    if not token or not token.isprintable() or " " in token:
        raise ConfigurationError(
            f"{path} has no token: make one with diskcast tokens create --role enrol --output"
        )
    return token
