"""The daemon's API as an ASGI application: the table of routes behind the gate and the route_guard.

::

    uvicorn ─► RequestMiddleware: request id, Host, Origin, headers, what nobody expected
                 └► route ─► RouteGuard: token and role, type and size of the body, Idempotency-Key
                                └► FastAPI: fields ─► endpoint ─► services
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from protocol.control.control_messages import API_BASE
from protocol.errors import DiskcastError
from sender.api.auth import Authenticator
from sender.api.guarded_route import Operation, RouteGuard
from sender.api.idempotency import IdempotentResponses
from sender.api.middleware import LOOPBACK_NAMES, RequestMiddleware
from sender.api.openapi import complete_document
from sender.api.problems import answer_error, ascii_json
from sender.api.route_table import OPERATIONS, TAGS
from sender.api.static_files import DashboardFiles
from sender.config.server_config import ServerConfig
from sender.daemon.context import Services

_DESCRIPTION: Final = """\
Images, rooms, machines and casts of a diskcast daemon.

Sizes are bytes, rates bytes a second, times RFC 3339 in UTC, ratios 0 to 1. Errors are `application/problem+json`
(RFC 9457); their `instance` is the request's id, which every answer has in `X-Request-Id`, and which the daemon's log
and audit name too. Lists come in pages: ask again with `cursor` until `next_cursor` is null. A creation with an
`Idempotency-Key` can be repeated safely.

A token goes into `Authorization: Bearer TOKEN`. `view` sees, `operate` also changes, `enrol` is for agents. A daemon
that listens on the loopback address only asks for no token unless it is told to.
"""


def create_application(services: Services) -> FastAPI:
    """The application that serves ``services``.

    Its ``state.stopping`` is an event that ends streams and waiting check-ins when it is set, which
    :class:`sender.api.server.ApiServer` does.
    """
    open_to_all = not services.config.server.tokens_required
    authenticator = Authenticator(services, open_to_all=open_to_all)
    plain_paths = [_path(operation) for operation in OPERATIONS if "{" not in operation.path]
    route_guard = RouteGuard(authenticator, IdempotentResponses(services.store), plain_paths)
    app = _routed(route_guard.route_class)
    app.state.services = services
    app.state.authenticator = authenticator
    app.state.stopping = asyncio.Event()
    app.state.stream_count = 0
    app.state.machines_total = 0
    app.state.metrics_turn = asyncio.Semaphore(1)
    app.state.dashboard_files = DashboardFiles()
    app.state.document = ascii_json(complete_document(app.openapi(), OPERATIONS))
    app.add_middleware(
        RequestMiddleware,
        hosts=_hosts(services.config, open_to_all=open_to_all),
        origins=services.config.server.allowed_hosts,
    )
    for kind in (DiskcastError, RequestValidationError):
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(HTTPException, _answer_http)
    return app


def api_document() -> dict[str, Any]:
    """The OpenAPI document, of no daemon in particular."""
    return complete_document(_routed(lambda _operation: APIRoute).openapi(), OPERATIONS)


def _routed(route_class: Callable[[Operation], type[APIRoute]]) -> FastAPI:
    """The routes of the table, and nothing else."""
    app = FastAPI(
        title="diskcast",
        version=importlib.metadata.version("diskcast"),
        description=_DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        redirect_slashes=False,
    )
    for operation in OPERATIONS:
        _add(app, operation, route_class(operation))
    return app


def _add(app: FastAPI, operation: Operation, route_class: type[APIRoute]) -> None:
    summary, _, _ = (operation.endpoint.__doc__ or "").partition("\n")
    app.router.add_api_route(
        _path(operation),
        operation.endpoint,
        methods=[operation.method, "HEAD"] if operation.tag == "" else [operation.method],
        status_code=operation.status,
        tags=[operation.tag] if operation.tag else None,
        summary=summary.removesuffix("."),
        operation_id=operation.endpoint.__name__,
        include_in_schema=bool(operation.tag),
        route_class_override=route_class,
    )


def _path(operation: Operation) -> str:
    return operation.path if operation.own_path else API_BASE + operation.path


def _hosts(config: ServerConfig, *, open_to_all: bool) -> frozenset[str] | None:
    """Host headers that are let in; None: any.

    Without tokens the name is what tells a browser's own page from one of another site whose name was made to point
    here. With tokens such a page has none, and machines may call the daemon as they like.
    """
    if not open_to_all:
        return None
    address = config.server.endpoint[0]
    return LOOPBACK_NAMES | {f"[{address}]" if ":" in address else address, *config.server.allowed_hosts}


async def _answer_http(request: Request, error: Exception) -> Response:
    """Starlette's and our own refusals; 405 names all methods that the path has, not only the first route's."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        routes = [route for route in request.app.router.routes if isinstance(route, Route)]
        # To the router /images/scan is also an image of that name.
        here = [route for route in routes if route.path == request.url.path] or [
            route for route in routes if route.matches(request.scope)[0] is not Match.NONE
        ]
        allowed = {method for route in here for method in route.methods or ()}
        error = HTTPException(
            error.status_code,
            f"{request.method} isn't possible here; possible: {', '.join(sorted(allowed))}",
            {"Allow": ", ".join(sorted(allowed))},
        )
    elif error.status_code == HTTPStatus.NOT_FOUND and error.detail == HTTPStatus.NOT_FOUND.phrase:
        error = HTTPException(error.status_code, f"there is nothing at {request.url.path[:200]!r}")
    return await answer_error(request, error)
