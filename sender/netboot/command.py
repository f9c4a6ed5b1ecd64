"""The commands ``diskcast netboot``: a table of their modules."""

from __future__ import annotations

from typing import Final

import click

from protocol.program.command_line import Implementation, LazyGroup

COMMANDS: Final = {
    "build": Implementation(
        "sender.netboot.build.command:build", "Build the boot medium: kernel and initrd with the agent."
    ),
    "usb": Implementation(
        "sender.netboot.usb.command:usb",
        "Write a boot medium as a USB stick, for BIOS, UEFI and Secure Boot.",
    ),
}
"""Each module is imported when it is used."""


@click.group(cls=LazyGroup, implementations=COMMANDS)
def netboot() -> None:
    """Boot bare machines into the agent, from the network or from a USB stick.

    \b
    Examples:
      diskcast netboot build -o boot
      diskcast netboot usb boot -o stick.img
    """  # noqa: D301
