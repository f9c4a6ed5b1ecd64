"""The ``diskcast`` command line: its commands, and where each of them is."""

from __future__ import annotations

from typing import Final, NoReturn

from protocol.program.command_line import Implementation, program, run_program

COMMANDS: Final = {
    "pack": Implementation("sender.imaging.image_commands:pack", "Pack a disk into an image."),
    "inspect": Implementation("sender.imaging.image_commands:inspect", "Say what an image holds."),
    "verify": Implementation("sender.imaging.image_commands:verify", "Check every byte of an image or disk."),
    "unpack": Implementation(
        "sender.imaging.image_commands:unpack", "Write an image to a disk or file, without a network."
    ),
    "send": Implementation("sender.send.command:send", "Cast an image to a room of machines."),
    "serve": Implementation(
        "sender.serve.serve_command:serve", "Run the daemon: images, rooms, casts, dashboard, API."
    ),
    "images": Implementation("sender.console.images:images", "Images that the daemon can cast."),
    "rooms": Implementation("sender.console.rooms:rooms", "Rooms: named sets of machines."),
    "machines": Implementation(
        "sender.console.machines:machines", "Machines, whether they are switched on or not."
    ),
    "casts": Implementation("sender.console.casts:casts", "Casts: one image to a room of machines."),
    "schedules": Implementation(
        "sender.console.schedules:schedules", "Casts that are planned again and again."
    ),
    "tokens": Implementation("sender.console.tokens:tokens", "Tokens: who may do what."),
    "history": Implementation("sender.console.history:history", "Show what went to which machine."),
    "database": Implementation(
        "sender.store.database_command:database", "Check, back up and restore the daemon's database."
    ),
    "doctor": Implementation("sender.doctor.command:doctor", "Try out what a sender or the daemon needs."),
    "demo": Implementation("sender.demo.command:demo", "Run a whole cast on this machine."),
}
"""Each is imported when it is used: ``diskcast inspect`` doesn't wait for a web framework."""


@program("diskcast", COMMANDS)
def cli() -> None:
    """Image a room of machines at once: pack a golden disk image, multicast it, know that it arrived."""


def main() -> NoReturn:
    """Run ``diskcast``."""
    run_program(cli)
