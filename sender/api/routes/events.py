"""Live events as a stream."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Query, Request
from starlette.responses import Response

from sender.api.bodies.event_stream import STREAMS_MAX, event_stream
from sender.api.guard.auth import Access, authenticator_of
from sender.api.guard.guarded_route import ServicesOf
from sender.refusals import RequestRefusedError

TOPICS_MAX: Final = 8
"""Topics of one stream: a page shows one room or one cast, a wall a few."""
TOPICS_PATTERN: Final = (
    "^(?:overview|room:[a-z0-9][a-z0-9-]{0,63}|cast:[0-9a-f]{8})"
    "(?:,(?:overview|room:[a-z0-9][a-z0-9-]{0,63}|cast:[0-9a-f]{8})){0,7}$"
)


async def watch_events(
    services: ServicesOf,
    request: Request,
    topics: Annotated[
        str,
        Query(
            pattern=TOPICS_PATTERN,
            max_length=1200,
            examples=["overview,cast:1a2b3c4d"],
            description="Comma-separated topics: overview, room:ID, cast:ID; at most 8.",
        ),
    ] = "overview",
) -> Response:
    """Follow live state as server-sent events.

    Each event has a name and one line of JSON: ``overview``; ``room`` with its machines; ``cast`` with its machines,
    new chart points and events. An event with ``full`` replaces the state sent before; without it, it holds only the
    changes.
    """
    state = request.app.state
    if state.stream_count >= STREAMS_MAX:
        raise RequestRefusedError(
            HTTPStatus.SERVICE_UNAVAILABLE, f"{STREAMS_MAX} event streams are open already: close some pages"
        )
    authenticator = authenticator_of(request)
    names = tuple(dict.fromkeys(topics.split(",")))
    await services.feed.check(names)
    state.stream_count += 1

    def release() -> None:
        state.stream_count -= 1

    return event_stream(
        services.feed.subscribe(names),
        stopping=state.stopping,
        authorise=lambda: authenticator.authorise(request, Access.VIEW),
        on_end=release,
    )
