"""Who asks the daemon for something, and what it answers when it won't."""

from __future__ import annotations

import dataclasses
from http import HTTPStatus

from protocol.errors import DiskcastError, ServerRefusedError
from sender.store.audit import AuditNote


@dataclasses.dataclass(frozen=True, slots=True)
class Actor:
    """Who asks.

    Attributes:
        name: of the token, ``local``, ``schedule NAME`` or ``daemon NAME``: what audit says.
        request_id: of the API call, empty without one; the same in the log and in audit.
    """

    name: str
    request_id: str = ""

    def note(self, action: str = "", **detail: object) -> AuditNote:
        """What audit keeps of a change that was asked for; without ``action`` the change's own name."""
        return AuditNote(self.name, action, self.request_id, detail)


class RequestRefused(ServerRefusedError):  # noqa: N818  it's what happened, as in JoinRefusedError
    """What was asked can't be done; the text says why and what can be.

    Attributes:
        status: how HTTP says it.
    """

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def not_found(kind: str, key: str) -> RequestRefused:
    """There is no such thing."""
    return RequestRefused(HTTPStatus.NOT_FOUND, f"there is no {kind} {key!r}")


def conflict(text: str) -> RequestRefused:
    """It can't be done in the state that things are in."""
    return RequestRefused(HTTPStatus.CONFLICT, text)


def invalid(error: DiskcastError | str) -> RequestRefused:
    """It can't ever be done as it was asked."""
    return RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
