"""The first token: how an operator gets into a daemon that demands tokens and has none yet."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import structlog

from protocol.errors import ConfigurationError
from sender.server_config import ServerConfig
from sender.store.audit import AuditNote
from sender.store.errors import ConflictError
from sender.store.records import Role
from sender.store.tokens import Tokens

FIRST_TOKEN_NAME = "first-operator"  # noqa: S105
FIRST_TOKEN_FILE = "operator-token"  # noqa: S105

log = structlog.get_logger()


def ensure_first_token(config: ServerConfig, tokens: Tokens) -> Path | None:
    """Make a token of the role operate if tokens are demanded and there is none, and write it to a file.

    The file is in the state directory and only the daemon's user can read it: whoever can, could read the database
    as well. The secret is neither printed nor logged.

    Args:
        config: the daemon's.
        tokens: of its database.

    Returns:
        The file, if it was written now.

    Raises:
        ConfigurationError: it can't be written; then there is no token either, and the next start tries again.
        DatabaseError: the database can't be used.
    """
    if not config.server.tokens_required:
        return None
    path = config.server.state_directory / FIRST_TOKEN_FILE
    known, _ = tokens.list(limit=2)
    # A daemon that was killed between making and writing it left one that nobody knows and nobody used.
    lost = [token for token in known if token.name == FIRST_TOKEN_NAME and token.last_used_at is None]
    if known and (len(known) > 1 or not lost or path.exists()):
        return None
    note = AuditNote(actor=f"daemon {config.server.name}")
    for token in lost:
        tokens.remove(token.token_id, audit=note)
    try:
        token, secret = tokens.create(FIRST_TOKEN_NAME, Role.OPERATE, created_by=note.actor, audit=note)
    except ConflictError:  # another daemon of the same database started at the same moment
        return None
    try:
        _write_private(path, f"{secret}\n")
    except OSError as error:
        tokens.remove(token.token_id, audit=note)
        raise ConfigurationError(
            f"the first token can't be written to {path}: {error.strerror}. Let the daemon's user write to "
            f"{path.parent}, or choose another server.state_directory"
        ) from error
    log.warning("first_token_written", path=str(path), role=Role.OPERATE.value)
    return path


def _write_private(path: Path, text: str) -> None:
    """Replace a file by one that is whole and private from its first moment."""
    temporary = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
