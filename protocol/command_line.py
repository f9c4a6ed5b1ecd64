"""What both programs' command lines share: commands imported when they run, and errors that become exit codes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import click

from protocol.errors import EXIT_INTERRUPTED, DiskcastError, error_result

CONTEXT_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LazyGroup(click.Group):
    """A command group that imports a command's module only when that command runs or is listed with its help."""

    def __init__(self, *args: Any, implementations: Mapping[str, str], **options: Any) -> None:
        """Takes what :class:`click.Group` does, and where the commands are.

        Args:
            *args: as for :class:`click.Group`.
            implementations: ``module:attribute`` of each command, in the order of the help.
            **options: as for :class:`click.Group`.
        """
        super().__init__(*args, **options)
        self._implementations = implementations

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order that they were given in."""
        return list(self._implementations)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        path = self._implementations.get(cmd_name)
        if path is None:
            return None
        module_name, attribute = path.split(":")
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        return command


def run_program(cli: click.Group) -> NoReturn:
    """Run a command line; every deliberate error ends here with its documented exit code."""
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
