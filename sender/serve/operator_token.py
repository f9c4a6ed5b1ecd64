"""The first token of a daemon, in a file that only its user can read, and the link that logs this user's browser in."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from protocol.errors import DatabaseError
from sender.api.guard.auth import Authenticator
from sender.config.local_token import OPERATOR_TOKEN_FILE
from sender.store.records.access import Role, Token
from sender.store.repositories.audit import AuditNote
from sender.store.store import Store

_PAGE_COUNT: Final = 500

_log = structlog.get_logger(__name__)


def ensure_operator_token(daemon: str, store: Store, state: Path) -> None:
    """Write a token of role operate to a file of mode 0600, unless there is one; blocks.

    The file stays as it is after its token was revoked, as long as another token can operate. A deleted file is written
    again, with a new token; the old one is revoked.

    Args:
        daemon: name of the daemon.
        store: the daemon's store.
        state: its state directory.
    """
    path = state / OPERATOR_TOKEN_FILE
    name, note = f"operator of {daemon}", AuditNote(f"daemon {daemon}")
    tokens = _all_tokens(store)
    now = datetime.now(UTC)
    can_operate = any(
        token.role is Role.OPERATE and (token.expires_at is None or now < token.expires_at)
        for token in tokens
    )
    if path.exists() and can_operate:
        return
    for token in tokens:
        if token.name == name:
            store.tokens.remove(token.token_id, audit=note)
    _token, secret = store.tokens.create(name, Role.OPERATE, audit=note)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, 0o600)
        file.write(secret + "\n")
    _log.warning(
        "bootstrap_token_created",
        fix="create other tokens with 'diskcast tokens create'; commands of this user find this one there",
        token_file=str(path),
        name=name,
    )


def _all_tokens(store: Store) -> list[Token]:
    tokens, cursor = store.tokens.list(limit=_PAGE_COUNT)
    while cursor is not None:
        page, cursor = store.tokens.list(after=cursor, limit=_PAGE_COUNT)
        tokens += page
    return tokens


async def login_link(url: str, state: Path, authenticator: Authenticator) -> str:
    """Return the dashboard's address with a code that logs in as the operator of the token file.

    Without a usable file the address has no code, and the dashboard asks for a token.
    """
    try:
        secret = (state / OPERATOR_TOKEN_FILE).read_text().strip()
        credential = await authenticator.secrets.get(secret)
    except (OSError, UnicodeDecodeError, DatabaseError):
        return url
    return url if credential is None else f"{url}#login={authenticator.login_codes.create(credential)}"
