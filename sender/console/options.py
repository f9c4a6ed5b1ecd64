"""Options that the commands on the daemon share: server and token, list limits, checked ids."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from protocol.errors import ConfigurationError, MissingDependencyError
from protocol.program.options import CA_OPTION, PIN_OPTION, WholeNumber

if TYPE_CHECKING:
    from protocol.program.peer_trust import PeerTrust
    from sender.console.client import Client
    from sender.console.output import Output

Function = TypeVar("Function", bound=Callable[..., Any])

SERVER_DEFAULT: Final = "http://127.0.0.1:7400"
"""URL of a daemon without configuration."""
LIST_COUNT_DEFAULT: Final = 50
_TOKEN_BYTES_MAX: Final = 4096
ROOM_PATTERN: Final = "^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$"
CAST_PATTERN: Final = "^[0-9a-f]{8}$"
"""The API's patterns, so that ``--help`` needs no import; a test compares them."""
_NEEDED_MODULES: Final = ("httpx", "pydantic")


def checked_room(_context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """Return a room's id after checking its form, so that a typo fails with a clear message.

    Raises:
        click.BadParameter: the text can't be a room's id.
    """
    return _checked_id(
        parameter, text, ROOM_PATTERN, "a room's id: use lower case letters, digits and hyphens"
    )


def checked_cast(_context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """Return a cast's id after checking its form.

    Raises:
        click.BadParameter: the text can't be a cast's id.
    """
    form = "a cast's id: use eight hexadecimal digits, as `diskcast casts list` shows them"
    return _checked_id(parameter, text, CAST_PATTERN, form)


def _checked_id(parameter: click.Parameter, text: str | None, pattern: str, form: str) -> str | None:
    if text is not None and re.search(pattern, text) is None:
        raise click.BadParameter(f"{text!r} isn't {form}", param=parameter)
    return text


def api_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the connection and ``--json`` to a command, and pass it a ``Client`` and an ``Output``."""

    @functools.wraps(function)
    def with_client(
        *args: object,
        server: str | None,
        pins: tuple[str, ...],
        ca_file: Path | None,
        token_file: Path | None,
        json_lines: bool,
        **kwargs: object,
    ) -> object:
        client, output = connect(server, token_file, pins, ca_file, json_lines=json_lines)
        with client:
            return function(client, output, *args, **kwargs)

    decorated: Callable[..., Any] = with_client
    json_option = click.option(
        "--json",
        "json_lines",
        is_flag=True,
        help="Write JSON lines to stdout; the last one is the result.",
    )
    return daemon_options(json_option(decorated))


def daemon_options(function: Function) -> Function:
    """Add the options of the connection: ``server``, ``pins``, ``ca_file`` and ``token_file``."""
    for option in (
        click.option(
            "--token-file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            show_default="$DISKCAST_TOKEN, $DISKCAST_TOKEN_FILE, or that of a daemon of this user",
            help="File with the API token.",
        ),
        CA_OPTION,
        PIN_OPTION,
        click.option(
            "--server",
            metavar="URL",
            envvar="DISKCAST_SERVER",
            show_default="the daemon on this machine",
            show_envvar=True,
            help="URL of the daemon.",
        ),
    ):
        function = option(function)
    return function


def list_options(function: Function) -> Function:
    """Add ``--limit`` and ``--all`` to a command that lists, as ``limit`` and ``everything``."""
    function = click.option("--all", "everything", is_flag=True, help="List everything, without a limit.")(
        function
    )
    return click.option(
        "--limit",
        metavar="N",
        type=WholeNumber(1),
        default=LIST_COUNT_DEFAULT,
        show_default=True,
        help="List at most N lines.",
    )(function)


def connect(
    server: str | None,
    token_file: Path | None,
    pins: Collection[str] = (),
    ca_file: Path | None = None,
    *,
    json_lines: bool,
) -> tuple[Client, Output]:
    """Return a client and an output for the options of the connection and the environment.

    Raises:
        ConfigurationError: the URL, the token, the pin or the CA can't be used.
        MissingDependencyError: a package that the client needs isn't installed.
    """
    url, token, trust = find_daemon(server, token_file, pins, ca_file)
    from sender.console.client import Client
    from sender.console.output import Output

    return Client(url, token, trust), Output(json_lines=json_lines)


def find_daemon(
    server: str | None, token_file: Path | None, pins: Collection[str] = (), ca_file: Path | None = None
) -> tuple[str, str | None, PeerTrust]:
    """Return the daemon's URL, the token for it and its accepted certificates.

    A daemon on this machine is found, and recognised, by the file that it writes into its state directory.

    Raises:
        ConfigurationError: the token, the pin or the CA can't be used.
        MissingDependencyError: a package that a client needs isn't installed.
    """
    missing = [name for name in _NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"cannot reach the daemon: {', '.join(missing)} is not installed; run pip install 'diskcast[server]'"
        )
    from protocol.program.peer_trust import PeerTrust
    from sender.config.local_endpoint import find_local_endpoint
    from sender.config.local_token import find_local_token

    trust = PeerTrust.of_options(pins, ca_file)
    local = find_local_endpoint() if server is None or not trust else None
    if server is None:
        server = SERVER_DEFAULT if local is None else local.url
    if not trust and local is not None and local.pin and server == local.url:
        trust = PeerTrust(pins=(local.pin,))
    return server, find_token(token_file) or find_local_token(server), trust


def find_token(token_file: Path | None) -> str | None:
    """Return the token's secret, or None.

    It is never an argument of the command line, where every user of the machine could read it.

    Raises:
        ConfigurationError: the token's file can't be read, or holds no token.
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
            f"cannot read the token file {token_file}: {error.strerror or error}"
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
            f"{source} holds no token: expected one line like dct_operate_…, as `diskcast tokens create` prints it"
        )
    return token
