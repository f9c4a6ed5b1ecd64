"""The common command line of both programs: commands imported at their first use, errors turned into exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import click

from protocol.errors import EXIT_INTERRUPTED, DiskcastError, ResourcesError, error_result

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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that ``args`` start with.

        Raises:
            click.exceptions.NoSuchCommand: there is none of that name; the message has similar ones.
        """
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            name = error.command_name
            raise click.exceptions.NoSuchCommand(
                name, possibilities=self._implementations, ctx=ctx
            ) from error

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
    """Run a command line and exit; a :class:`DiskcastError` exits with its documented code.

    With ``--json`` the last line is a result, whatever ended the command.
    """
    _prevent_core_dumps()
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        _exit_failed(error, error.exit_code, error.format_message())
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        _exit_failed(KeyboardInterrupt("interrupted"), EXIT_INTERRUPTED)
    except DiskcastError as error:
        _show(error)
        _exit_failed(error, error.exit_code)
    except Exception as error:  # noqa: BLE001  every other error is reported, then ends the program
        short = _short_of_resources(error)
        if short is None:
            traceback.print_exc()
            _exit_failed(error, DiskcastError.exit_code)
        _show(short)
        _exit_failed(short, short.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _show(error: DiskcastError) -> None:
    if "--json" not in sys.argv:
        click.echo(f"error: {error}", err=True)


def _exit_failed(error: BaseException, exit_code: int, text: str | None = None) -> NoReturn:
    if "--json" in sys.argv:
        result = error_result(error)
        click.echo(json.dumps({**result, "exit_code": exit_code, "error": text or result["error"]}))
    sys.exit(exit_code)


def _short_of_resources(error: Exception) -> ResourcesError | None:
    """Return the limit of this process that an error comes from; also an import fails by it."""
    text = str(error)
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in text:
        return ResourcesError("too many open files: raise the limit of this process (ulimit -n)")
    if isinstance(error, MemoryError) or os.strerror(errno.ENOMEM) in text or "failed to map" in text:
        return ResourcesError(
            "too little memory: raise the limit of this process (ulimit -v), or free some memory"
        )
    return None


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
