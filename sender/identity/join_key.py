"""The sender's secret key, from which the join secrets of its casts derive."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from protocol.trust.join_code import SECRET_KEY_BYTES
from sender.identity.private_files import ensure_private_file

JOIN_KEY_FILE: Final = "join-key"


def ensure_join_key(directory: Path) -> bytes:
    """Return the key in ``directory``, made now if there is none: a restarted sender has the same join codes.

    Raises:
        ConfigurationError: the file can't be made or read, or isn't a key.
    """
    path = directory / JOIN_KEY_FILE
    key = ensure_private_file(path, lambda: secrets.token_bytes(SECRET_KEY_BYTES))
    if len(key) != SECRET_KEY_BYTES:
        raise ConfigurationError(f"{path} isn't a join key: remove it to get a new one, with new join codes")
    return key
