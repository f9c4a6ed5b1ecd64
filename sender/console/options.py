"""What the commands on the daemon have in common: how they find it, how they are decorated, how lists are asked for."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from protocol.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from sender.console.client import Client
    from sender.console.output import Output

Function = TypeVar("Function", bound=Callable[..., Any])

SERVER_DEFAULT: Final = "http://127.0.0.1:7400"
LIST_COUNT_DEFAULT: Final = 50
_TOKEN_BYTES_MAX: Final = 4096
ROOM_PATTERN: Final = "^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$"
CAST_PATTERN: Final = "^[0-9a-f]{8}$"
"""As the API has them; a test compares."""
_NEEDED_MODULES: Final = ("httpx", "pydantic")


def checked_room(_context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """A room's id; what can't be one is refused in words, before the daemon is asked."""
    return _checked_id(parameter, text, ROOM_PATTERN, "a room's id: lower case letters, digits and hyphens")


def checked_cast(_context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """A cast's id; as :func:`checked_room`."""
    words = "a cast's id: eight hexadecimal digits, as `diskcast casts list` shows them"
    return _checked_id(parameter, text, CAST_PATTERN, words)


def _checked_id(parameter: click.Parameter, text: str | None, pattern: str, words: str) -> str | None:
    if text is not None and re.search(pattern, text) is None:
        raise click.BadParameter(f"{text!r} isn't {words}", param=parameter)
    return text


def api_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options ``--server``, ``--token-file``, ``--json``; it gets a ``Client`` and an ``Output``."""

    @functools.wraps(function)
    def with_client(
        *args: object, server: str, token_file: Path | None, json_lines: bool, **kwargs: object
    ) -> object:
        client, output = connect(server, token_file, json_lines=json_lines)
        with client:
            return function(client, output, *args, **kwargs)

    decorated: Callable[..., Any] = with_client
    for option in (
        click.option(
            "--json", "json_lines", is_flag=True, help="JSON lines on stdout; the last is the result."
        ),
        click.option(
            "--token-file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="File that holds the token; else DISKCAST_TOKEN, or the file that DISKCAST_TOKEN_FILE names.",
        ),
        click.option(
            "--server",
            metavar="URL",
            envvar="DISKCAST_SERVER",
            default=SERVER_DEFAULT,
            show_default=True,
            show_envvar=True,
            help="The daemon.",
        ),
    ):
        decorated = option(decorated)
    return decorated


def list_options(function: Function) -> Function:
    """Give a command that lists ``--limit`` and ``--all``, as ``limit`` and ``everything``."""
    function = click.option("--all", "everything", is_flag=True, help="Everything, however much it is.")(
        function
    )
    return click.option(
        "--limit",
        metavar="N",
        type=click.IntRange(1),
        default=LIST_COUNT_DEFAULT,
        show_default=True,
        help="At most N lines.",
    )(function)


def connect(server: str, token_file: Path | None, *, json_lines: bool) -> tuple[Client, Output]:
    """What ``--server``, ``--token-file`` and the environment say.

    Raises:
        ConfigurationError: a URL or a token's file can't be used.
        MissingDependencyError: what a client needs isn't installed.
    """
    missing = [name for name in _NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"commands on the daemon need {', '.join(missing)}, not installed here: pip install 'diskcast[server]'"
        )
    from sender.console.client import Client
    from sender.console.output import Output

    return Client(server, find_token(token_file)), Output(json_lines=json_lines)


def find_token(token_file: Path | None) -> str | None:
    """The token's secret; never taken from the command line, where every user of the machine can read it.

    Raises:
        ConfigurationError: there is one to be had, but it can't be read.
    """
    if token_file is None:
        text = os.environ.get("DISKCAST_TOKEN", "")
        name = os.environ.get("DISKCAST_TOKEN_FILE", "")
        if text or not name:
            return _checked_token(text, "DISKCAST_TOKEN") if text else None
        token_file = Path(name)
    try:
        with token_file.open("rb") as file:
            content = file.read(_TOKEN_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigurationError(
            f"the token's file {token_file} can't be read: {error.strerror or error}"
        ) from error
    return _checked_token(content.decode(errors="replace"), str(token_file))


def _checked_token(text: str, source: str) -> str:
    token = text.strip()
    if (
        not token
        or len(token) > _TOKEN_BYTES_MAX
        or not (token.isascii() and token.isprintable())
        or " " in token
    ):
        raise ConfigurationError(
            f"{source} holds no token: it should be one line like dct_operate_…, as `diskcast tokens create` gave it"
        )
    return token
