"""Command-line options of an agent that works for a daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from protocol.program.options import CA_OPTION, PIN_OPTION
from receiver.service.agent_token import TOKEN_VARIABLE

SERVER_VARIABLE: Final = "DISKCAST_SERVER"

_SERVER_OPTION: Final = click.option(
    "--server",
    "servers",
    multiple=True,
    envvar=SERVER_VARIABLE,
    metavar="URL",
    help=f"URL of a daemon; repeatable.  [env: {SERVER_VARIABLE}, space-separated]",
)
_TOKEN_FILE_OPTION: Final = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Token file (role enrol); {TOKEN_VARIABLE} may hold the token itself.",
)


def daemon_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``servers``, ``pins``, ``ca_file`` and ``token_file``."""
    for option in (_TOKEN_FILE_OPTION, CA_OPTION, PIN_OPTION, _SERVER_OPTION):
        command = option(command)
    return command
