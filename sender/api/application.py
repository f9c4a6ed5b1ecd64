"""The daemon's API as an ASGI application: the table of routes behind the middleware and the route guard.

::

    uvicorn ─► RequestMiddleware: request id, Host, Origin, headers, unexpected errors
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

from protocol.control.check_in import CHECK_IN_PATH
from protocol.control.control_messages import API_BASE
from protocol.errors import DiskcastError
from sender.api.bodies.static_files import DashboardFiles
from sender.api.guard.auth import Authenticator
from sender.api.guard.guarded_route import Operation, RouteGuard
from sender.api.guard.idempotency import IdempotentResponses
from sender.api.guard.problems import ascii_json, error_response
from sender.api.middleware import LOOPBACK_NAMES, RequestMiddleware
from sender.api.openapi import complete_document
from sender.api.route_table import OPERATIONS, TAGS
from sender.config.server_config import ServerConfig
from sender.daemon.context import Services

_DESCRIPTION: Final = """\
Images, rooms, machines and casts of a diskcast daemon.

Sizes are in bytes, rates in bytes per second, times in UTC (RFC 3339), ratios from 0 to 1. Errors are
`application/problem+json` (RFC 9457). Their `instance` is the request id, which every response has in `X-Request-Id`
and which also appears in the daemon's log and audit. Lists are paged: repeat the request with `cursor` until
`next_cursor` is null. A creation with an `Idempotency-Key` can be retried safely.

Send a token in `Authorization: Bearer TOKEN`. The role `view` reads, `operate` also changes, `enrol` is for agents,
`boot` for boot services. The
daemon writes the first token to the file `operator-token` in its state directory.
"""


def create_application(services: Services) -> FastAPI:
    """Return the application that serves ``services``.

    Setting the event ``state.stopping`` ends streams and waiting check-ins; :class:`sender.api.server.ApiServer` does.
    """
    authenticator = Authenticator(
        services.store,
        services.recorder,
        services.access,
        services.captures,
        metrics_public=services.config.metrics.public,
    )
    plain_paths = [_path(operation) for operation in OPERATIONS if "{" not in operation.path]
    route_guard = RouteGuard(authenticator, IdempotentResponses(services.store), plain_paths)
    app = _routed(route_guard.route_class)
    app.state.services = services
    app.state.authenticator = authenticator
    app.state.disk_stream_count = 0
    app.state.stopping = asyncio.Event()
    app.state.stream_count = 0
    app.state.machines_total = 0
    app.state.metrics_lock = asyncio.Semaphore(1)
    app.state.dashboard_files = DashboardFiles()
    app.state.document = ascii_json(complete_document(app.openapi(), OPERATIONS))
    # Routes are matched one by one; waiting agents make nearly all requests, and no other route has this path.
    app.router.routes.sort(key=lambda route: getattr(route, "path", "") != API_BASE + CHECK_IN_PATH)
    app.add_middleware(
        RequestMiddleware,
        hosts=_hosts(services.config),
        origins=services.config.server.allowed_hosts,
        trusted_proxies=services.config.server.proxy_networks,
    )
    for kind in (DiskcastError, RequestValidationError):
        app.add_exception_handler(kind, error_response)
    app.add_exception_handler(HTTPException, _http_error_response)
    return app


def api_document() -> dict[str, Any]:
    """Return the OpenAPI document, without a running daemon."""
    return complete_document(_routed(lambda _operation: APIRoute).openapi(), OPERATIONS)


def _routed(route_class: Callable[[Operation], type[APIRoute]]) -> FastAPI:
    """Return an application with the routes of the table and no others."""
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


def _hosts(config: ServerConfig) -> frozenset[str] | None:
    """Return the allowed Host headers; None allows any.

    On the loopback address the names are known. A page of another site whose name was made to resolve to this daemon
    (DNS rebinding) then can't even try to log in. Elsewhere clients may use any name: such a page has no token.
    """
    if not config.server.loopback:
        return None
    address = config.server.endpoint[0]
    return LOOPBACK_NAMES | {f"[{address}]" if ":" in address else address, *config.server.allowed_hosts}


async def _http_error_response(request: Request, error: Exception) -> Response:
    """Return the response to an HTTP error; 405 names the methods of all routes of the path, not only the first."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        routes = [route for route in request.app.router.routes if isinstance(route, Route)]
        # /images/scan also matches the route of an image of that name: prefer exact paths.
        here = [route for route in routes if route.path == request.url.path] or [
            route for route in routes if route.matches(request.scope)[0] is not Match.NONE
        ]
        allowed = {method for route in here for method in route.methods or ()}
        error = HTTPException(
            error.status_code,
            f"{request.method} is not allowed here; use {', '.join(sorted(allowed))}",
            {"Allow": ", ".join(sorted(allowed))},
        )
    elif error.status_code == HTTPStatus.NOT_FOUND and error.detail == HTTPStatus.NOT_FOUND.phrase:
        error = HTTPException(error.status_code, f"there is nothing at {request.url.path[:200]!r}")
    return await error_response(request, error)
