"""One way through which every request reaches its endpoint: who asks, what kind of body and how much of it, and whether
the same was asked for before. All that comes before anything of the body is looked at.
"""

from __future__ import annotations

import asyncio
import dataclasses
import email.message
import enum
from collections.abc import Awaitable, Callable, Collection, Coroutine
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sender.actors import Actor
from sender.api.auth import Access, Authenticator, Principal
from sender.api.idempotency import KEY_HEADER, IdempotentResponses
from sender.api.problems import request_id_of
from sender.daemon.context import Services

JSON_BODY_BYTES_MAX: Final = 256 << 10
"""A thousand machine ids are 40 KB; a check-in with its inventory is less."""
CSV_BODY_BYTES_MAX: Final = 2 << 20
"""Ten thousand machines, generously described."""
BODY_TIMEOUT_S: Final = 30.0
"""A body that takes longer comes from a stalled or hostile peer."""


Endpoint = Callable[..., Awaitable[Any]]


class Body(enum.Enum):
    """What a route reads."""

    NONE = ""
    JSON = "application/json"
    OPTIONAL_JSON = "application/json, or nothing"
    CSV = "text/csv"


class Repeat(enum.Enum):
    """What becomes of a creation that is asked for again with the same Idempotency-Key."""

    UNGUARDED = "nothing is remembered"
    SAME_ANSWER = "the first answer is given again"
    REFUSED = "it is refused: the first answer held a secret, which is kept nowhere"


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """A route: one row of the table of all (:mod:`sender.api.route_table`).

    Attributes:
        path: below ``API_BASE`` unless it begins with ``//``.
        endpoint: its name is the operation's id, its docstring what the document says, its annotations the rest.
        answer: media type of what it answers, where that isn't JSON.
        own_path: the path as it stands, not below ``API_BASE``.
    """

    method: str
    path: str
    access: Access
    endpoint: Endpoint
    tag: str
    status: HTTPStatus = HTTPStatus.OK
    body: Body = Body.NONE
    repeat: Repeat = Repeat.UNGUARDED
    answer: str = "application/json"
    own_path: bool = False
    problems: tuple[HTTPStatus, ...] = ()


class RouteGuard:
    """What all routes share: the authenticator, and what was asked for before."""

    def __init__(
        self,
        authenticator: Authenticator,
        idempotency: IdempotentResponses,
        plain_paths: Collection[str] = (),
    ) -> None:
        """Serve with these.

        Args:
            authenticator: finds out who asks.
            idempotency: keeps answers.
            plain_paths: paths without parameters, which another route's parameter can't stand for.
        """
        self._plain_paths = frozenset(plain_paths)
        self._authenticator = authenticator
        self._idempotency = idempotency

    def route_class(self, operation: Operation) -> type[APIRoute]:
        """The class of the route of ``operation``: FastAPI's own, behind the route_guard."""
        route_guard = self

        class GuardedRoute(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
                inner = super().get_route_handler()

                async def handle(request: Request) -> Response:
                    return await route_guard.enter(operation, request, inner)

                return handle

        return GuardedRoute

    async def enter(
        self, operation: Operation, request: Request, inner: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Serve one request of ``operation`` by ``inner``, or refuse it."""
        if "{" in operation.path and request.url.path in self._plain_paths:
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED)
        principal = await self._authenticator.authorise(request, operation.access)
        request.state.principal = principal
        body = b""
        if operation.body is not Body.NONE:
            body = await _body_untrusted(request, operation.body)
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
            replay=operation.repeat is Repeat.SAME_ANSWER,
            answer=lambda: inner(request),
        )


async def _body_untrusted(request: Request, kind: Body) -> bytes:
    """The body, of the right kind and not too long; it is kept in the request for FastAPI."""
    bytes_max = CSV_BODY_BYTES_MAX if kind is Body.CSV else JSON_BODY_BYTES_MAX
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > 12 or int(length) > bytes_max:
        raise _too_large(bytes_max)
    pieces: list[bytes] = []
    read_bytes = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                read_bytes += len(piece)
                if read_bytes > bytes_max:
                    raise _too_large(bytes_max)
                pieces.append(piece)
    except TimeoutError as error:
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, f"no whole body in {BODY_TIMEOUT_S:g} s") from error
    except ClientDisconnect as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the connection ended within the body") from error
    body = b"".join(pieces)
    if not (kind is Body.OPTIONAL_JSON and not body):
        wanted = "text/csv" if kind is Body.CSV else "application/json"
        _demand_type(request, wanted)
    request._body = body
    return body


def _demand_type(request: Request, wanted: str) -> None:
    # A form of another site can send neither of the two types without asking first (CORS), which nobody here allows.
    message = email.message.Message()
    message["content-type"] = request.headers.get("content-type", "")
    if message.get_content_type() != wanted or not request.headers.get("content-type"):
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be {wanted}: set Content-Type")
    charset = message.get_content_charset("utf-8")
    if charset not in ("utf-8", "us-ascii"):
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be UTF-8")


def _too_large(bytes_max: int) -> HTTPException:
    # What is left of the body isn't read, so the connection can't be used again.
    return HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body may have at most {bytes_max} bytes here",
        {"Connection": "close"},
    )


# -- what endpoints ask for ---------------------------------------------------------------------------------------


# Coroutines, though they wait for nothing: FastAPI calls plain functions in threads, three for each of 125 check-ins a
# second of a room of 500.


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
