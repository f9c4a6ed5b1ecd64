"""The ``diskcast-agent`` command line: its commands, and where each of them is."""

from __future__ import annotations

from typing import Final, NoReturn

import click

from protocol.command_line import CONTEXT_SETTINGS, LazyGroup, run_program

COMMANDS: Final = {
    "receive": "receiver.reception.receive_command:receive",
    "run": "receiver.service.run_command:run",
    "restore": "receiver.disk_commands:restore",
    "compare": "receiver.disk_commands:compare",
    "disks": "receiver.disks_command:disks",
    "doctor": "receiver.doctor_command:doctor",
}
"""Name to implementation, imported when it is used: the agent starts within a second."""


@click.group(cls=LazyGroup, implementations=COMMANDS, context_settings=CONTEXT_SETTINGS)
@click.version_option(package_name="diskcast", prog_name="diskcast-agent")
def cli() -> None:
    """Receive a disk image that is multicast to this machine, write it, verify it."""


def main() -> NoReturn:
    """Run ``diskcast-agent``."""
    run_program(cli)
