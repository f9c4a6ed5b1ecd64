"""The guard of every route: authorisation, the body's type and size, and idempotency keys.

All of these are checked before the body is parsed.
"""

from __future__ import annotations

import dataclasses
import email.message
import enum
from collections.abc import Awaitable, Callable, Collection, Coroutine
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sender.actors import Actor
from sender.api.guard.auth import Access, Authenticator, Principal
from sender.api.guard.idempotency import KEY_HEADER, IdempotentResponses
from sender.api.guard.problems import request_id_of
from sender.daemon.context import Services
from sender.http.body import read_body_untrusted

OPEN_BODY_BYTES_MAX: Final = 4 << 10
"""A token. Anybody may send a body to an open route."""
JSON_BODY_BYTES_MAX: Final = 256 << 10
"""A thousand machine ids are 40 KB; a check-in with its inventory is less."""
CSV_BODY_BYTES_MAX: Final = 2 << 20
"""Ten thousand machines with long descriptions."""

Endpoint = Callable[..., Awaitable[Any]]


class Body(enum.Enum):
    """The body that a route accepts."""

    NONE = ""
    JSON = "application/json"
    OPTIONAL_JSON = "application/json, or nothing"
    CSV = "text/csv"
    BATCH = "application/octet-stream"
    """The endpoint reads it, when there is room for it."""


class Repeat(enum.Enum):
    """The handling of a creation that is repeated with the same Idempotency-Key; the value completes a sentence."""

    UNGUARDED = "is handled like any other request"
    SAME_RESPONSE = "gets the response to the first request"
    REFUSED = "is refused, since the first response held a secret that isn't stored"


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """A route: one row of :mod:`sender.api.route_table`.

    Attributes:
        path: relative to ``API_BASE`` unless ``own_path``.
        endpoint: its name is the operation's id, its docstring the summary and description in the OpenAPI document.
        media_type: of the response.
        own_path: ``path`` is absolute.
    """

    method: str
    path: str
    access: Access
    endpoint: Endpoint
    tag: str
    status: HTTPStatus = HTTPStatus.OK
    body: Body = Body.NONE
    repeat: Repeat = Repeat.UNGUARDED
    media_type: str = "application/json"
    own_path: bool = False
    problems: tuple[HTTPStatus, ...] = ()


class RouteGuard:
    """The checks that all routes share."""

    def __init__(
        self,
        authenticator: Authenticator,
        idempotency: IdempotentResponses,
        plain_paths: Collection[str] = (),
    ) -> None:
        """Guard routes.

        Args:
            authenticator: authorises requests.
            idempotency: stores responses by idempotency key.
            plain_paths: paths without parameters, which no path parameter of another route may match.
        """
        self._plain_paths = frozenset(plain_paths)
        self._authenticator = authenticator
        self._idempotency = idempotency

    def route_class(self, operation: Operation) -> type[APIRoute]:
        """Return the class of the route of ``operation``: FastAPI's own, behind this guard."""
        route_guard = self

        class GuardedRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                inner = super().get_route_handler()

                async def handle(request: Request) -> Response:
                    return await route_guard.serve(operation, request, inner)

                return handle

        return GuardedRoute

    async def serve(
        self, operation: Operation, request: Request, inner: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Check one request of ``operation`` and serve it by ``inner``, or refuse it."""
        if "{" in operation.path and request.url.path in self._plain_paths:
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED)
        principal = await self._authenticator.authorise(request, operation.access)
        request.state.principal = principal
        body = b""
        if operation.body is Body.BATCH:
            _demand_type(request, Body.BATCH.value)
        elif operation.body is not Body.NONE:
            body = await _body_untrusted(request, operation)
        if operation.repeat is Repeat.UNGUARDED:
            return await inner(request)
        key = request.headers.get(KEY_HEADER)
        if key is None:
            return await inner(request)
        return await self._idempotency.once(
            key,
            principal.name,
            operation=f"{operation.method} {request.url.path}",
            body=body,
            replay=operation.repeat is Repeat.SAME_RESPONSE,
            respond=lambda: inner(request),
        )


async def _body_untrusted(request: Request, operation: Operation) -> bytes:
    """Read the body after checking its type and size; leave it in the request for FastAPI."""
    kind = operation.body
    bytes_max = CSV_BODY_BYTES_MAX if kind is Body.CSV else JSON_BODY_BYTES_MAX
    if operation.access is Access.OPEN:
        bytes_max = OPEN_BODY_BYTES_MAX
    body = await read_body_untrusted(request, bytes_max)
    if not (kind is Body.OPTIONAL_JSON and not body):
        wanted = "text/csv" if kind is Body.CSV else "application/json"
        _demand_type(request, wanted)
    request._body = body
    return body


def _demand_type(request: Request, wanted: str) -> None:
    # A form of another site can't send either type without a CORS preflight, which no route allows.
    message = email.message.Message()
    message["content-type"] = request.headers.get("content-type", "")
    if message.get_content_type() != wanted or not request.headers.get("content-type"):
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be {wanted}: set Content-Type")
    charset = message.get_content_charset("utf-8")
    if charset not in ("utf-8", "us-ascii"):
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be UTF-8")


# -- dependencies of endpoints ---------------------------------------------------------------------------------------


# Coroutines, though they wait for nothing: FastAPI runs plain functions in threads, which would be three threads for
# each of the 125 check-ins per second of a room of 500.


async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def _principal(request: Request) -> Principal:
    principal = request.state.principal
    assert isinstance(principal, Principal)
    return principal


async def _actor(request: Request) -> Actor:
    return (await _principal(request)).actor(request_id_of(request))


ServicesOf = Annotated[Services, Depends(_services)]
PrincipalOf = Annotated[Principal, Depends(_principal)]
ActorOf = Annotated[Actor, Depends(_actor)]
