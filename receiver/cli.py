"""The command line of ``diskcast-agent``: a table of its commands."""

from __future__ import annotations

from typing import Final, NoReturn

from protocol.program.command_line import Implementation, program, run_program

COMMANDS: Final = {
    "receive": Implementation(
        "receiver.reception.receive_command:receive", "Receive one cast, write it to a disk, and verify it."
    ),
    "run": Implementation(
        "receiver.service.run_command:run", "Wait for casts of a daemon, and receive each one."
    ),
    "restore": Implementation(
        "receiver.restore.restore_commands:restore", "Write an image file to a disk without a network."
    ),
    "compare": Implementation(
        "receiver.restore.restore_commands:compare", "Compare a disk with an image file."
    ),
    "disks": Implementation(
        "receiver.restore.list_disks_command:disks",
        "List this machine's disks and whether they can be targets.",
    ),
    "menu": Implementation(
        "receiver.live.menu.command:menu", "Image this machine by a menu, for a technician at its console."
    ),
    "doctor": Implementation("receiver.doctor.command:doctor", "Check that this machine can receive casts."),
}
"""Commands by name; each is imported only when it runs, so the agent starts within a second."""


@program("diskcast-agent", COMMANDS)
def cli() -> None:
    """Receive multicast disk images, write them to this machine's disk, and verify them."""


def main() -> NoReturn:
    """Run ``diskcast-agent``."""
    run_program(cli)
