"""Tokens, sessions and audit entries."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime

from sender.store.records.api_schema import ClosedObject


class Role(enum.StrEnum):
    """Permissions of a token."""

    VIEW = "view"
    """Read everything except tokens' secrets."""
    OPERATE = "operate"
    """Read and change everything."""
    ENROL = "enrol"
    """Enrol machines, nothing else: an agent exchanges this token for its machine's own secret."""
    BOOT = "boot"
    """Ask for the systems that machines boot, nothing else: for a boot service, which gets single-use boot tokens."""


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret, which isn't stored.

    Attributes:
        room_id: with the roles enrol and boot: room whose machines it enrols or boots; None for all rooms.
    """

    token_id: str
    name: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    last_used_at: datetime | None
    room_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """A browser that logged in with a token. Its secret is in a cookie; here is only the hash."""

    session_id: str
    secret_hash: str = dataclasses.field(repr=False)
    token_id: str
    created_at: datetime
    expires_at: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Credential:
    """The token that a secret stands for.

    Attributes:
        session: the session, if the secret is that of a session.
    """

    token: Token
    session: Session | None

    def valid(self, now: datetime) -> bool:
        """Return whether neither the token nor the session has expired."""
        ends = (self.token.expires_at, None if self.session is None else self.session.expires_at)
        return all(end is None or now < end for end in ends)


@dataclasses.dataclass(frozen=True, slots=True)
class NewToken(ClosedObject):
    """A new token with its secret."""

    __pydantic_config__ = {"use_attribute_docstrings": True}  # noqa: RUF012  read by pydantic

    token: Token
    secret: str
    """Secret of the token. Shown only once; the daemon stores its hash."""


@dataclasses.dataclass(frozen=True, slots=True)
class AuditEntry:
    """A recorded action.

    Attributes:
        actor: name of the token, ``schedule NAME`` or ``daemon NAME``.
        action: for example ``cast.create``, ``cast.cancel``, ``cast.done``, ``room.import``, ``token.create``.
        subject: object of the action, for example ``cast 1a2b3c4d``.
        detail: changed fields and other details.
        request_id: id of the API call, as in the log.
    """

    entry_id: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, object]
    request_id: str
