"""The dashboard's session: log in and out."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sender.api.bodies.request_models import SessionInput
from sender.api.bodies.responses import SessionView
from sender.api.guard.auth import SESSION_COOKIE, authenticator_of
from sender.store.records.access import Role

SESSION_S: Final = 12 * 3600
"""Lifetime of a session: a working day."""


async def sign_in(request: Request, response: Response, body: SessionInput) -> SessionView:
    """Log in to the dashboard: store a token in a cookie that scripts can't read."""
    authenticator = authenticator_of(request)
    if authenticator.open_to_all:
        return SessionView(role=Role.OPERATE, name="local")
    token = await authenticator.check(body.token, request.client.host if request.client else "")
    if token is None:
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED,
            "the token is unknown or has expired: ask an operator for a new one",
            {"WWW-Authenticate": "Bearer"},
        )
    if token.role is Role.ENROL:
        raise HTTPException(
            HTTPStatus.FORBIDDEN, f"the token {token.name!r} is for agents: use one of role view or operate"
        )
    response.set_cookie(
        SESSION_COOKIE,
        body.token,
        max_age=SESSION_S,
        path="/",
        secure=_is_encrypted(request),
        httponly=True,
        samesite="strict",
    )
    return SessionView(role=token.role, name=token.name)


async def sign_out(request: Request) -> Response:
    """Sign out: delete the cookie."""
    response = Response(status_code=HTTPStatus.NO_CONTENT)
    response.delete_cookie(
        SESSION_COOKIE, path="/", secure=_is_encrypted(request), httponly=True, samesite="strict"
    )
    return response


def _is_encrypted(request: Request) -> bool:
    """Return whether the browser uses TLS, to the daemon or to a proxy.

    A forged header only affects the cookie of its sender.
    """
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", "").lower())
