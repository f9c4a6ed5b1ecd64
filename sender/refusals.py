"""Refusals: answers of the daemon to a request that it won't carry out, with their HTTP status."""

from __future__ import annotations

from http import HTTPStatus

from protocol.errors import DiskcastError, ServerRefusedError


class RequestRefusedError(ServerRefusedError):
    """What was asked can't be done; the text says why and what can be.

    Attributes:
        status: how HTTP says it.
    """

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def not_found(kind: str, key: str) -> RequestRefusedError:
    """There is no such thing."""
    return RequestRefusedError(HTTPStatus.NOT_FOUND, f"there is no {kind} {key!r}")


def conflict(text: str) -> RequestRefusedError:
    """It can't be done in the state that things are in."""
    return RequestRefusedError(HTTPStatus.CONFLICT, text)


def invalid(error: DiskcastError | str) -> RequestRefusedError:
    """It can't ever be done as it was asked."""
    return RequestRefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
