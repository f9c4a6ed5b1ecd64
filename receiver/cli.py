"""The ``diskcast-agent`` command line: the commands' table and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import json
import sys
from typing import NoReturn

import click

from protocol.errors import EXIT_INTERRUPTED, DiskcastError, error_result

COMMANDS = {
    "receive": "receiver.reception.receive_command:receive",
    "run": "receiver.service.run_command:run",
    "restore": "receiver.disk_commands:restore",
    "compare": "receiver.disk_commands:compare",
    "disks": "receiver.disks_command:disks",
    "doctor": "receiver.doctor_command:doctor",
}
"""Name to implementation, imported when it is used: the agent starts within a second."""


class LazyGroup(click.Group):
    """A command group that imports a command's module only when that command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, the main one first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        path = COMMANDS.get(cmd_name)
        if path is None:
            return None
        module_name, attribute = path.split(":")
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        return command


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="diskcast", prog_name="diskcast-agent")
def cli() -> None:
    """Receive a disk image that is multicast to this machine, write it, verify it."""


def main() -> NoReturn:
    """Run the command line; every deliberate error ends here with its documented exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except DiskcastError as error:
        if "--json" in sys.argv:
            click.echo(json.dumps(error_result(error)))
        else:
            click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
