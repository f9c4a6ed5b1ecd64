"""The ``diskcast`` command line: the commands' table and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import json
import sys
from typing import NoReturn

import click

from protocol.errors import EXIT_INTERRUPTED, DiskcastError, error_result

COMMANDS = {
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


class LazyGroup(click.Group):
    """A command group that imports a command's module only when that command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of a cast's life."""
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
@click.version_option(package_name="diskcast", prog_name="diskcast")
def cli() -> None:
    """Image a room of machines at once: pack a golden disk image, multicast it, know that it arrived."""


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
