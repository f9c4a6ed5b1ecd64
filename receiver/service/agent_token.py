"""Where an agent's token comes from: a file or the environment, never the command line, which ``ps`` shows to all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError

TOKEN_VARIABLE: Final = "DISKCAST_TOKEN"  # noqa: S105 - a name
TOKEN_FILE_VARIABLE: Final = "DISKCAST_TOKEN_FILE"  # noqa: S105 - a name
TOKEN_BYTES_MAX: Final = 4096
"""Of a token's file: whoever names a disk image by mistake hears so at once."""


def read_token(token_file: Path | None) -> str:
    """The token in the file, or in the environment, or in the file that the environment names; empty if none is given.

    Raises:
        ConfigurationError: the file can't be read, or holds no token.
    """
    text = os.environ.get(TOKEN_VARIABLE, "")
    if token_file is None and not text and os.environ.get(TOKEN_FILE_VARIABLE):
        token_file = Path(os.environ[TOKEN_FILE_VARIABLE])
    if token_file is None:
        return _checked(text, TOKEN_VARIABLE) if text else ""
    try:
        with token_file.open("rb") as file:
            content = file.read(TOKEN_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigurationError(f"the token's file {token_file} can't be read: {error.strerror}") from error
    return _checked(content.decode(errors="replace"), str(token_file))


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if not token or len(token) > TOKEN_BYTES_MAX or not all("!" <= character <= "~" for character in token):
        raise ConfigurationError(f"{where} holds no token: put one line with nothing but the token there")
    return token
