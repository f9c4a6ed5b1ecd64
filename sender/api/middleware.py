"""The outermost middleware: request ids, checks of Host and Origin, security headers, logging, unexpected errors."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sender.addresses import IpNetwork, contains_address, source_network
from sender.api.guard.problems import error_response, problem_response
from sender.http.connections import count_rejection
from sender.http.rejections import Rejection
from sender.metrics.daemon_metrics import observe_request

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_log = structlog.get_logger("diskcast.api")


class RequestMiddleware:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str] | None,
        origins: Iterable[str] = (),
        trusted_proxies: Iterable[IpNetwork] = (),
    ) -> None:
        """Pass checked requests to ``app``.

        Args:
            app: the application.
            hosts: allowed names in the Host header, without port; None allows any. Against DNS rebinding: a browser
                sends the name of the attacker's site.
            origins: allowed names in the Origin header besides the request's Host, which a reverse proxy may change.
            trusted_proxies: reverse proxies whose X-Forwarded-For names the client.
        """
        self._trusted_proxies = tuple(trusted_proxies)
        self._origins = frozenset(origin.lower() for origin in origins)
        self._app = app
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started_at = time.monotonic()
        status = 0
        self._find_client(scope, headers)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    response_headers.setdefault(name, value)
                response_headers["X-Request-Id"] = request_id
                response_headers.setdefault("Cache-Control", "no-store")
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                refusal = self._refusal(scope, headers)
                if refusal is None:
                    await self._app(scope, receive, send_with_headers)
                else:
                    count_rejection(Request(scope), Rejection.FORBIDDEN)
                    await problem_response(*refusal, request_id)(scope, receive, send_with_headers)
            except Exception as error:
                if status:
                    raise  # a started response can only be cut off
                response = await error_response(Request(scope), error)
                await response(scope, receive, send_with_headers)
            finally:
                self._log_request(scope, status, time.monotonic() - started_at)

    def _find_client(self, scope: Scope, headers: Headers) -> None:
        """Replace a trusted proxy's address by that of its client: the last one that isn't a trusted proxy."""
        hops = [scope["client"][0] if scope.get("client") else ""]
        hops += [hop.strip() for hop in reversed(",".join(headers.getlist("x-forwarded-for")).split(","))]
        for nearer, farther in itertools.pairwise(hops):
            if not contains_address(self._trusted_proxies, nearer) or not source_network(farther):
                return
            scope["client"] = (farther, 0)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[HTTPStatus, str] | None:
        host = headers.get("host", "").lower()
        if self._hosts is not None and _without_port(host) not in self._hosts:
            return (
                HTTPStatus.FORBIDDEN,
                f"unknown host {host[:100]!r}: use localhost, or add the name to server.allowed_hosts",
            )
        if scope["method"] in _SAFE_METHODS:
            return None
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(_netloc(origin), host):
            return (
                HTTPStatus.FORBIDDEN,
                (
                    f"cross-site request from {origin[:100]!r} rejected: "
                    "if the site is yours, add its name to server.allowed_hosts"
                ),
            )
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return HTTPStatus.FORBIDDEN, "cross-site request rejected"
        return None

    def _is_ours(self, origin: str, host: str) -> bool:
        return bool(origin) and (origin == host or _without_port(origin) in self._origins)

    def _log_request(self, scope: Scope, status: int, seconds: float) -> None:
        """Log a request: failures as warnings, changes as information, everything frequent as debug."""
        method, path = scope["method"], scope["path"]
        observe_request(getattr(scope.get("route"), "path", ""), method, status, seconds)
        checks_in = path.endswith("/check-in")
        changes = method not in _SAFE_METHODS and not checks_in
        # A stopping daemon answers waiting agents with 503; they reconnect automatically.
        failed = status >= 500 and not (checks_in and status == HTTPStatus.SERVICE_UNAVAILABLE)
        level = "warning" if failed else "info" if changes else "debug"
        client = scope.get("client")
        getattr(_log, level)(
            "request",
            method=method,
            path=path[:200],
            status=int(status),
            seconds=round(seconds, 4),
            client=client[0] if client else "",
            actor=getattr(scope["state"].get("principal"), "name", ""),
        )


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
