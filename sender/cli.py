"""The ``diskcast`` command line: its commands, and where each of them is."""

from __future__ import annotations

from typing import Final, NoReturn

import click

from protocol.command_line import CONTEXT_SETTINGS, LazyGroup, run_program

COMMANDS: Final = {
    "pack": "sender.imaging.image_commands:pack",
    "inspect": "sender.imaging.image_commands:inspect",
    "verify": "sender.imaging.image_commands:verify",
    "unpack": "sender.imaging.image_commands:unpack",
    "send": "sender.cast.send_command:send",
    "serve": "sender.daemon.serve_command:serve",
    "images": "sender.console.images:images",
    "rooms": "sender.console.rooms:rooms",
    "machines": "sender.console.machines:machines",
    "casts": "sender.console.casts:casts",
    "schedules": "sender.console.schedules:schedules",
    "tokens": "sender.console.tokens:tokens",
    "history": "sender.console.history:history",
    "database": "sender.store.database_command:database",
    "doctor": "sender.doctor.command:doctor",
    "demo": "sender.demo.command:demo",
}
"""Name to implementation, imported when it is used: ``diskcast inspect`` doesn't wait for a web framework."""


@click.group(cls=LazyGroup, implementations=COMMANDS, context_settings=CONTEXT_SETTINGS)
@click.version_option(package_name="diskcast", prog_name="diskcast")
def cli() -> None:
    """Image a room of machines at once: pack a golden disk image, multicast it, know that it arrived."""


def main() -> NoReturn:
    """Run ``diskcast``."""
    run_program(cli)
