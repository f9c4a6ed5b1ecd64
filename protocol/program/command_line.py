"""The common command line of both programs: commands imported at their first use, errors turned into exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import click

from protocol.errors import EXIT_INTERRUPTED, DiskcastError, error_result

_CONTEXT_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_CORE_BYTES: Final = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Implementation:
    """Location of a command, and its line in the list of commands.

    Attributes:
        path: ``module:attribute``.
        summary: a line that fits a terminal.
    """

    path: str
    summary: str

    def load(self) -> click.Command:
        """Import the command."""
        module_name, attribute = self.path.split(":")
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        return command


class LazyGroup(click.Group):
    """A command group that imports a command's module only when that command runs."""

    def __init__(self, *args: Any, implementations: Mapping[str, Implementation], **options: Any) -> None:
        """Create the group.

        Args:
            *args: as for :class:`click.Group`.
            implementations: commands by name, in the order of the help.
            **options: as for :class:`click.Group`.
        """
        super().__init__(*args, **options)
        self._implementations = implementations

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the help."""
        return list(self._implementations)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        implementation = self._implementations.get(cmd_name)
        return None if implementation is None else implementation.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands for the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.summary) for name, row in self._implementations.items()])


def program(
    name: str, implementations: Mapping[str, Implementation]
) -> Callable[[Callable[[], None]], click.Group]:
    """Return a decorator that turns a function into a program's command line; its docstring heads the help.

    Args:
        name: the program's name, as its ``--version`` shows it.
        implementations: its commands by name, in the order of the help.
    """

    def decorate(function: Callable[[], None]) -> click.Group:
        versioned = click.version_option(package_name="diskcast", prog_name=name)(function)
        return click.group(
            cls=LazyGroup, implementations=implementations, context_settings=_CONTEXT_SETTINGS
        )(versioned)

    return decorate


def run_program(cli: click.Group) -> NoReturn:
    """Run a command line and exit; a :class:`DiskcastError` exits with its documented code."""
    _prevent_core_dumps()
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


def _prevent_core_dumps() -> None:
    """Keep the secrets in the memory of this program and of its children out of core dumps.

    A limit of one byte instead of none also stops dumps into a pipe (core(5)).
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (_CORE_BYTES, _CORE_BYTES))


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Make SIGTERM clean up as Ctrl-C does: by default it would leave the temporary file."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
