"""Tokens and audit entries."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime


class Role(enum.StrEnum):
    """What the owner of a token may do."""

    VIEW = "view"
    """See everything but tokens' secrets."""
    OPERATE = "operate"
    """See and change everything."""
    ENROL = "enrol"
    """Check a machine in and get its cast, nothing else: the agents' role."""


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """A token, without its secret, which nobody knows but its owner."""

    token_id: str
    name: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, when.

    Attributes:
        actor: name of the token, ``local``, ``schedule NAME`` or ``daemon NAME``.
        action: e.g. ``cast.create``, ``cast.cancel``, ``cast.done``, ``room.import``, ``token.create``.
        subject: what it was done to, e.g. ``cast 1a2b3c4d``.
        detail: what changed.
        request_id: of the API call; the same in the log.
    """

    entry_id: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, object]
    request_id: str
