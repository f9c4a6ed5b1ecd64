"""The ``diskcast-agent`` command line: its commands, and where each of them is."""

from __future__ import annotations

from typing import Final, NoReturn

from protocol.program.command_line import Implementation, program, run_program

COMMANDS: Final = {
    "receive": Implementation(
        "receiver.reception.receive_command:receive", "Receive one cast, write it to a disk, verify it."
    ),
    "run": Implementation(
        "receiver.service.run_command:run", "Wait for casts of a daemon, and receive each."
    ),
    "restore": Implementation(
        "receiver.restore.restore_commands:restore", "Write an image file to a disk, without a network."
    ),
    "compare": Implementation(
        "receiver.restore.restore_commands:compare", "Compare a disk with an image file."
    ),
    "disks": Implementation(
        "receiver.restore.list_disks_command:disks",
        "List the disks of this machine, and which may be written.",
    ),
    "doctor": Implementation("receiver.doctor_command:doctor", "Try out what a receiver needs."),
}
"""Each is imported when it is used: the agent starts within a second."""


@program("diskcast-agent", COMMANDS)
def cli() -> None:
    """Receive a disk image that is multicast to this machine, write it, verify it."""


def main() -> NoReturn:
    """Run ``diskcast-agent``."""
    run_program(cli)
