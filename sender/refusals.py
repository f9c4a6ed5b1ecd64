"""Refusals: answers of the daemon to a request that it won't carry out, with their HTTP status."""

from __future__ import annotations

from http import HTTPStatus

from protocol.errors import DiskcastError, ServerRefusedError


class RequestRefusedError(ServerRefusedError):
    """The request can't be carried out; the text gives the reason and the fix.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def not_found(kind: str, key: str) -> RequestRefusedError:
    """Return the refusal of a request about an unknown record."""
    return RequestRefusedError(HTTPStatus.NOT_FOUND, f"there is no {kind} {key!r}")


def conflict(text: str) -> RequestRefusedError:
    """Return the refusal of a request that the current state doesn't allow."""
    return RequestRefusedError(HTTPStatus.CONFLICT, text)


def forbidden(text: str) -> RequestRefusedError:
    """Return the refusal of a request that the client isn't allowed to make."""
    return RequestRefusedError(HTTPStatus.FORBIDDEN, text)


def unauthorised(text: str) -> RequestRefusedError:
    """Return the refusal of a request whose client has lost its access."""
    return RequestRefusedError(HTTPStatus.UNAUTHORIZED, text)


def invalid(error: DiskcastError | str) -> RequestRefusedError:
    """Return the refusal of a request that could never be carried out."""
    return RequestRefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
