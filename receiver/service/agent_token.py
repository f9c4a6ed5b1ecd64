"""The agent's token, read from a file or the environment, never from the command line, which ``ps`` shows to all."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError

TOKEN_VARIABLE: Final = "DISKCAST_TOKEN"  # noqa: S105 - a name
TOKEN_FILE_VARIABLE: Final = "DISKCAST_TOKEN_FILE"  # noqa: S105 - a name
TOKEN_BYTES_MAX: Final = 4096
"""Longest token file: a disk image named by mistake is refused at once."""

KERNEL_COMMAND_LINE: Final = Path("/proc/cmdline")
_TOKEN_ON_COMMAND_LINE: Final = re.compile(r"\bdiskcast\.token=|\bdc[tmj]_[A-Za-z0-9_-]{8}")


def read_token(token_file: Path | None) -> str:
    """Return the token from the file, the environment, or the file named in the environment; empty if none is given.

    Raises:
        ConfigurationError: the file can't be read or contains no token.
    """
    text = os.environ.get(TOKEN_VARIABLE, "")
    if token_file is None and not text and os.environ.get(TOKEN_FILE_VARIABLE):
        token_file = Path(os.environ[TOKEN_FILE_VARIABLE])
    if token_file is None:
        return _parse_token(text, TOKEN_VARIABLE) if text else ""
    try:
        with token_file.open("rb") as file:
            content = file.read(TOKEN_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the token file {token_file}: {error.strerror}; check --token-file and the file's permissions"
        ) from error
    return _parse_token(content.decode(errors="replace"), str(token_file))


def refuse_token_on_kernel_command_line(path: Path = KERNEL_COMMAND_LINE) -> None:
    """Refuse to run with a token on the kernel command line.

    Everyone who can boot over the network gets the same command line, and so does every program on this machine.

    Raises:
        ConfigurationError: there is one.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return  # a container without /proc has no command line of ours either
    if _TOKEN_ON_COMMAND_LINE.search(text):
        raise ConfigurationError(
            "the kernel command line holds a token, which everyone who can boot over this network can read: remove it "
            "from the boot loader's files, revoke it, and put a new one into a --token-file inside a signed image, or "
            'let operators approve machines (enrolment = "approve")'
        )


def _parse_token(text: str, source: str) -> str:
    token = text.strip()
    if not token or len(token) > TOKEN_BYTES_MAX or not all("!" <= character <= "~" for character in token):
        raise ConfigurationError(f"{source} contains no token: put the token there, alone on one line")
    return token
