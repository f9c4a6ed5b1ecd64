"""The daemon itself: what it is, signing in, live events, agents' check-ins, metrics, and the dashboard's files."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from protocol.control.check_in import CHECK_IN, CHECK_IN_ANSWER
from protocol.control.control_messages import parse_json_untrusted
from protocol.errors import DatabaseError
from sender.api.auth import SESSION_COOKIE, Access, Authenticator
from sender.api.event_stream import STREAMS_MAX, event_stream
from sender.api.guarded_route import PrincipalOf, ServicesOf
from sender.api.problems import ascii_json
from sender.api.request_models import SessionInput
from sender.api.responses import Health, ServerView, SessionView
from sender.api.static_files import INDEX, DashboardFiles
from sender.daemon.context import Services
from sender.refusals import RequestRefusedError, not_found
from sender.store.records.access import Role

TOPICS_MAX: Final = 8
"""Of one stream: a page shows one room or one cast, a wall a few."""
TOPICS_PATTERN: Final = (
    "^(?:overview|room:[a-z0-9][a-z0-9-]{0,63}|cast:[0-9a-f]{8})"
    "(?:,(?:overview|room:[a-z0-9][a-z0-9-]{0,63}|cast:[0-9a-f]{8})){0,7}$"
)
SESSION_S: Final = 12 * 3600
"""How long a browser stays signed in: a working day."""


async def get_server(services: ServicesOf, principal: PrincipalOf, request: Request) -> ServerView:
    """Show the daemon: what it is, what the one who asks may do, and what is wrong."""
    return ServerView(
        name=services.config.server.name,
        version=importlib.metadata.version("diskcast"),
        role=principal.role or Role.OPERATE,
        auth="open" if _authenticator(request).open_to_all else "token",
        api="v1",
        started_at=services.started_at,
        problems=services.problems(),
        casts_live=sum(cast.phase.live for cast in services.supervisor.unfinished.values()),
        machines_online=services.presence.online_count,
        machines_total=await _machines_total(services, request),
        rate_ceiling_bytes_per_s=services.config.network.rate_ceiling_bytes_per_s,
    )


async def sign_in(request: Request, response: Response, body: SessionInput) -> SessionView:
    """Keep a token in a cookie that scripts can't read: for the dashboard."""
    authenticator = _authenticator(request)
    if authenticator.open_to_all:
        return SessionView(role=Role.OPERATE, name="local")
    token = await authenticator.check(body.token, request.client.host if request.client else "")
    if token is None:
        raise HTTPException(
            HTTPStatus.UNAUTHORIZED,
            "the token isn't known, or has expired: ask an operator for a new one",
            {"WWW-Authenticate": "Bearer"},
        )
    if token.role is Role.ENROL:
        raise HTTPException(
            HTTPStatus.FORBIDDEN, f"the token {token.name!r} is for agents: use one that may view or operate"
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
    """Forget the cookie."""
    response = Response(status_code=HTTPStatus.NO_CONTENT)
    response.delete_cookie(
        SESSION_COOKIE, path="/", secure=_is_encrypted(request), httponly=True, samesite="strict"
    )
    return response


async def watch_events(
    services: ServicesOf,
    request: Request,
    topics: Annotated[
        str,
        Query(
            pattern=TOPICS_PATTERN,
            max_length=1200,
            examples=["overview,cast:1a2b3c4d"],
            description="overview, room:ID and cast:ID, with commas between them; at most 8.",
        ),
    ] = "overview",
) -> Response:
    """Follow what goes on, as server-sent events.

    Each event has a name and one line of JSON: ``overview``; ``room`` with its machines; ``cast`` with its machines,
    new points of its charts and what happened. With ``full`` it replaces what was sent before, else only what changed
    is in it.
    """
    state = request.app.state
    if state.stream_count >= STREAMS_MAX:
        raise RequestRefusedError(
            HTTPStatus.SERVICE_UNAVAILABLE, f"{STREAMS_MAX} watchers are connected already: close some pages"
        )
    authenticator = _authenticator(request)
    names = tuple(dict.fromkeys(topics.split(",")))
    await services.live.check(names)
    state.stream_count += 1

    def forget() -> None:
        state.stream_count -= 1

    return event_stream(
        services.live.subscribe(names),
        stopping=state.stopping,
        still_may=lambda: authenticator.authorise(request, Access.VIEW),
        on_end=forget,
    )


async def check_in(services: ServicesOf, request: Request) -> Response:
    """Take an agent's word, and tell it which cast to join.

    An idle agent may let the daemon hold its answer for ``wait_s`` seconds until there is a cast.
    """
    word = CHECK_IN.decode_untrusted("check-in", parse_json_untrusted(await request.body()))
    address = request.client.host if request.client else ""
    stopping: asyncio.Event = request.app.state.stopping
    answer = asyncio.ensure_future(services.supervisor.check_in(word, address))
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((answer, stop), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE, "the daemon ends: check in again", {"Retry-After": "1"}
            )
        document = CHECK_IN_ANSWER.encode(answer.result())
    finally:
        answer.cancel()
        stop.cancel()
    return Response(ascii_json(document), media_type="application/json")


async def get_document(request: Request) -> Response:
    """Show this document."""
    return Response(
        request.app.state.document, media_type="application/json", headers={"Cache-Control": "no-cache"}
    )


async def get_health(services: ServicesOf) -> Health:
    """Tell that the daemon works; the database's trouble is told, and isn't the daemon's."""
    return Health(status="ok", database="ok" if services.store.problem is None else "failing")


async def get_metrics(services: ServicesOf, request: Request) -> Response:
    """Show metrics in Prometheus's text format."""
    from sender.metrics.daemon_metrics import CONTENT_TYPE, render_metrics

    # One at a time: several Prometheus servers wait for each other rather than take all threads.
    async with request.app.state.metrics_turn:
        body = await asyncio.to_thread(render_metrics, services)
    return Response(body, headers={"Content-Type": CONTENT_TYPE})


async def get_dashboard(request: Request) -> Response:
    """The dashboard."""
    return _file(request, INDEX)


async def get_asset(request: Request, name: str) -> Response:
    """A file of the dashboard."""
    return _file(request, name)


def _is_encrypted(request: Request) -> bool:
    """Whether the browser's side is TLS, here or at a proxy before us; a false word harms only its sender's cookie."""
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", "").lower())


def _file(request: Request, name: str) -> Response:
    files: DashboardFiles = request.app.state.dashboard_files
    answer = files.answer(name, request)
    if answer is None:
        raise not_found("file", name[:100])
    return answer


def _authenticator(request: Request) -> Authenticator:
    authenticator = request.app.state.authenticator
    assert isinstance(authenticator, Authenticator)
    return authenticator


async def _machines_total(services: Services, request: Request) -> int:
    """From the database; what it said last while it doesn't answer, since this page is how one sees that."""
    state = request.app.state
    with contextlib.suppress(DatabaseError):
        state.machines_total = await services.store.run(services.store.machines.count)
    total: int = state.machines_total
    return total
