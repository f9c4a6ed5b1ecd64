"""History and audit: lists and CSV downloads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Query
from starlette.responses import Response

from sender.api.bodies.csv_download import FetchPage, csv_download
from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.bodies.responses import Page
from sender.api.guard.guarded_route import ServicesOf
from sender.api.request_models.field_types import (
    CAST_ID_PATTERN,
    IMAGE_ID_PATTERN,
    MACHINE_ID_CHARACTERS_MAX,
    PLAIN_ID_PATTERN,
    TEXT_PATTERN,
    Time,
)
from sender.api.routes.parameters import RoomFilter
from sender.daemon.context import Services
from sender.store.records.access import AuditEntry
from sender.store.records.casts import HistoryLine


def _history_filters(
    *,
    machine_id: Annotated[
        str | None, Query(pattern=PLAIN_ID_PATTERN, max_length=MACHINE_ID_CHARACTERS_MAX)
    ] = None,
    image_id: Annotated[str | None, Query(pattern=IMAGE_ID_PATTERN, max_length=80)] = None,
    room_id: RoomFilter = None,
    cast_id: Annotated[str | None, Query(pattern=CAST_ID_PATTERN)] = None,
    state: Annotated[
        str | None,
        Query(
            pattern="^[a-z]+$",
            max_length=32,
            examples=["failed"],
            description="Only machines in this state.",
        ),
    ] = None,
    since: Annotated[Time | None, Query(description="Only entries from this time on.")] = None,
    until: Annotated[Time | None, Query(description="Only entries before this time.")] = None,
) -> dict[str, Any]:
    return {
        "machine_id": machine_id,
        "image_id": image_id,
        "room_id": room_id,
        "cast_id": cast_id,
        "state": state,
        "since": since,
        "until": until,
    }


def _audit_filters(
    *,
    actor: Annotated[str | None, Query(pattern=TEXT_PATTERN, max_length=100)] = None,
    subject: Annotated[
        str | None, Query(pattern=TEXT_PATTERN, max_length=200, examples=["cast 1a2b3c4d"])
    ] = None,
    since: Annotated[Time | None, Query(description="Only entries from this time on.")] = None,
    until: Annotated[Time | None, Query(description="Only entries before this time.")] = None,
) -> dict[str, Any]:
    return {"actor": actor, "subject": subject, "since": since, "until": until}


HistoryFilters = Annotated[Mapping[str, Any], Depends(_history_filters)]
AuditFilters = Annotated[Mapping[str, Any], Depends(_audit_filters)]


async def list_history(
    services: ServicesOf, filters: HistoryFilters, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[HistoryLine]:
    """List which image went to which machine, with the result, newest first."""
    items, next_cursor = await _history(services, filters)(cursor, limit)
    return Page(items=[*items], next_cursor=next_cursor)


async def download_history(services: ServicesOf, filters: HistoryFilters) -> Response:
    """Download the history as CSV."""
    return await csv_download(HistoryLine, "diskcast-history", _history(services, filters))


async def list_audit(
    services: ServicesOf, filters: AuditFilters, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[AuditEntry]:
    """List actions of operators and daemons, newest first."""
    items, next_cursor = await _audit(services, filters)(cursor, limit)
    return Page(items=[*items], next_cursor=next_cursor)


async def download_audit(services: ServicesOf, filters: AuditFilters) -> Response:
    """Download the audit as CSV."""
    return await csv_download(AuditEntry, "diskcast-audit", _audit(services, filters))


def _history(services: Services, filters: Mapping[str, Any]) -> FetchPage:
    return lambda after, rows: services.store.run(
        services.store.history.lines, **filters, after=after, limit=rows
    )


def _audit(services: Services, filters: Mapping[str, Any]) -> FetchPage:
    return lambda after, rows: services.store.run(
        services.store.audit.list, **filters, after=after, limit=rows
    )
