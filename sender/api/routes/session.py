"""The dashboard's session: log in and out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sender.api.bodies.responses import LoginCode, SessionView
from sender.api.guard.auth import SESSION_COOKIE, SESSION_LIFETIME, authenticator_of
from sender.api.guard.guarded_route import PrincipalOf
from sender.api.guard.login_codes import CODE_LIFETIME_S
from sender.api.guard.problems import request_id_of
from sender.api.request_models.session import SessionInput
from sender.store.records.access import Role


async def sign_in(request: Request, response: Response, body: SessionInput) -> SessionView:
    """Log in to the dashboard, with a token or a one-time code.

    The session's secret is in a cookie that scripts can't read.
    """
    authenticator = authenticator_of(request)
    if body.code is not None:
        credential = authenticator.redeem(body.code, request)
        problem = "the link was used before or has expired: get a new one with `diskcast dashboard`"
    else:
        credential = await authenticator.check(body.token or "", request)
        problem = "the token is unknown or has expired: ask an operator for a new one"
    if credential is None:
        raise HTTPException(HTTPStatus.UNAUTHORIZED, problem, {"WWW-Authenticate": "Bearer"})
    token = credential.token
    if token.role not in (Role.VIEW, Role.OPERATE):
        raise HTTPException(
            HTTPStatus.FORBIDDEN, f"the token {token.name!r} is for agents: use one of role view or operate"
        )
    _session, secret = await authenticator.sign_in(token, request_id_of(request))
    response.set_cookie(
        SESSION_COOKIE,
        secret,
        max_age=int(SESSION_LIFETIME.total_seconds()),
        path="/",
        secure=_is_encrypted(request),
        httponly=True,
        samesite="strict",
    )
    return SessionView(role=token.role, name=token.name)


async def sign_out(request: Request) -> Response:
    """Log out: revoke the session and delete the cookie."""
    cookie = request.cookies.get(SESSION_COOKIE)
    if cookie is not None:
        await authenticator_of(request).sign_out(cookie, request_id_of(request))
    response = Response(status_code=HTTPStatus.NO_CONTENT)
    response.delete_cookie(
        SESSION_COOKIE, path="/", secure=_is_encrypted(request), httponly=True, samesite="strict"
    )
    return response


async def create_login_code(request: Request, principal: PrincipalOf) -> LoginCode:
    """Create a code that logs a browser in once, with the token of this request.

    Put it into the address of the dashboard, after `#login=`.
    """
    assert principal.credential is not None
    code = authenticator_of(request).login_codes.create(principal.credential)
    return LoginCode(code=code, expires_at=datetime.now(UTC) + timedelta(seconds=CODE_LIFETIME_S))


def _is_encrypted(request: Request) -> bool:
    """Return whether the browser uses TLS, to the daemon or to a proxy.

    A forged header only affects the cookie of its sender.
    """
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", "").lower())
