"""The command ``diskcast netboot usb``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from protocol.errors import ConfigurationError
from protocol.shared.units import format_bytes
from sender.netboot.medium import BootMedium
from sender.netboot.usb.grub_text import StickMode
from sender.netboot.usb.stick import write_disc, write_stick

_WRITERS: Final = {".img": write_stick, ".iso": write_disc}


@click.command()
@click.argument("medium", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Image to write: FILE.img for a stick, FILE.iso for a disc or stick.",
)
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in StickMode]),
    default=StickMode.MENU.value,
    show_default=True,
    help="Entry that starts without a key press.",
)
def usb(medium: Path, output: Path, mode: str) -> None:
    """Write a boot medium, made by `diskcast netboot build`, as a USB stick.

    It starts by BIOS, UEFI and Secure Boot, on networks where nothing may be changed. The entry menu asks a technician;
    the entry run waits for casts of the daemon that is built into the medium.

    \b
    Examples:
      diskcast netboot usb boot -o stick.img
      diskcast netboot usb boot -o stick.iso --mode run
      dd if=stick.img of=/dev/sdX bs=4M oflag=direct status=progress
    """  # noqa: D301
    if output.suffix not in _WRITERS:
        raise ConfigurationError(
            f"{output} has an unknown suffix: name it FILE.img for a stick, FILE.iso for a disc"
        )
    if output.is_block_device():
        raise ConfigurationError(f"{output} is a device: write an image, then copy it with dd")
    opened = BootMedium.open(medium)
    if StickMode(mode) is StickMode.RUN and not opened.record.servers:
        raise ConfigurationError(
            f"{medium} has no daemon built in: build it with --server, or make a stick with --mode menu"
        )
    _WRITERS[output.suffix](opened, output.absolute(), StickMode(mode))
    click.echo(
        f"{output}: {format_bytes(output.stat().st_size)}; copy it to a stick with dd, or start it as a disc"
    )
