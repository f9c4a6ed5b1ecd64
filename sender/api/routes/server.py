"""The daemon itself: its state, health, metrics and OpenAPI document."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import importlib.metadata

from fastapi import Request
from starlette.responses import Response

from protocol.errors import ConfigurationError, DatabaseError
from protocol.program.trusted_keys_directory import TRUSTED_KEYS_DIRECTORY, load_trusted_keys
from protocol.trust.trusted_keys import TrustedKeys
from sender.api.bodies.responses import Health, ServerView
from sender.api.guard.guarded_route import PrincipalOf, ServicesOf
from sender.daemon.context import Services
from sender.metrics.daemon_metrics import CONTENT_TYPE
from sender.store.records.access import Role


async def get_server(services: ServicesOf, principal: PrincipalOf, request: Request) -> ServerView:
    """Show the daemon, the client's role and current problems."""
    return ServerView(
        name=services.config.server.name,
        version=importlib.metadata.version("diskcast"),
        role=principal.role or Role.VIEW,
        api="v1",
        started_at=services.started_at,
        pin=services.pin,
        trust_keys=await asyncio.to_thread(_trust_keys),
        problems=services.health.problems(),
        casts_live=sum(cast.phase.live for cast in services.registry.unfinished.values()),
        machines_online=services.presence.online_count,
        machines_total=await _machines_total(services, request),
        rate_ceiling_bytes_per_s=services.config.network.rate_ceiling_bytes_per_s,
    )


async def get_document(request: Request) -> Response:
    """Show this OpenAPI document."""
    return Response(
        request.app.state.document, media_type="application/json", headers={"Cache-Control": "no-cache"}
    )


async def get_health(services: ServicesOf) -> Health:
    """Report the daemon's health.

    A failing database is reported, but doesn't make the daemon unhealthy.
    """
    return Health(status="ok", database="ok" if services.store.problem is None else "failing")


async def get_metrics(services: ServicesOf, request: Request) -> Response:
    """Return metrics in Prometheus's text format."""
    # One at a time: several Prometheus servers wait for each other instead of taking all threads.
    async with request.app.state.metrics_lock:
        body = await asyncio.to_thread(services.metrics.render)
    return Response(body, headers={"Content-Type": CONTENT_TYPE})


def _trust_keys() -> list[str]:
    """Return the valid keys that this machine trusts; a file that can't be used is reported by the doctor."""
    try:
        keys = TrustedKeys(load_trusted_keys(TRUSTED_KEYS_DIRECTORY))
    except ConfigurationError:
        return []
    return [key.key.text for key in keys.usable(datetime.datetime.now(datetime.UTC))]


async def _machines_total(services: Services, request: Request) -> int:
    """Return the number of machines, or the last known one while the database is unavailable."""
    state = request.app.state
    with contextlib.suppress(DatabaseError):
        state.machines_total = await services.store.run(services.store.machines.count)
    total: int = state.machines_total
    return total
