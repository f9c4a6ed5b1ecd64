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
    "serve": Implementation(
        "sender.netboot.serve.command:serve", "Boot the machines of a network: DHCP, TFTP, HTTP."
    ),
    "print-config": Implementation(
        "sender.netboot.print_config.command:print_config",
        "Print the settings of another DHCP server for booting machines.",
    ),
    "doctor": Implementation(
        "sender.netboot.doctor.command:doctor", "Watch machines boot, and name the cause when they don't."
    ),
}
"""Each module is imported when it is used."""


@click.group(cls=LazyGroup, implementations=COMMANDS)
def netboot() -> None:
    """Boot bare machines into the agent, from the network or from a USB stick.

    \b
    Examples:
      diskcast netboot serve --interface eth1 --room lab-1
      diskcast netboot build -o boot
      diskcast netboot usb boot -o stick.img
    """  # noqa: D301
