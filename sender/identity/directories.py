"""The directories that hold keys, certificates and secrets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError

PROGRAM_DIRECTORY: Final = "diskcast"
"""Name of this program's directory among a user's configuration."""


def user_directory() -> Path:
    """Return the directory of the user who runs this program: ``$XDG_CONFIG_HOME/diskcast`` or ``~/.config/diskcast``.

    Raises:
        ConfigurationError: the user has no home directory.
    """
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if base.startswith("/"):
        return Path(base) / PROGRAM_DIRECTORY
    try:
        return Path.home() / ".config" / PROGRAM_DIRECTORY
    except RuntimeError as error:
        raise ConfigurationError(
            "this user has no home directory for keys and certificates: set XDG_CONFIG_HOME to a directory"
        ) from error
