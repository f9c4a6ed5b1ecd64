"""History: the results of all casts on all machines, searched along indexes."""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any, TypedDict, Unpack

import sqlalchemy as sa

from protocol.patch.effective_manifest import machine_digest
from sender.store.database import tables
from sender.store.records.casts import HistoryLine
from sender.store.records.machine_states import MachineState
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import Repository, reading

_LINE = tables.cast_machines.c
_CAST = tables.casts.c
_NAMES = tuple(name for name in HistoryLine.__dataclass_fields__ if name not in ("state", "machine_digest"))


class HistoryFilters(TypedDict, total=False):
    """Conditions on history lines. The cast first named the machine at ``since`` or later, before ``until``."""

    machine_id: str | None
    image_id: str | None
    room_id: str | None
    cast_id: str | None
    state: str | None
    since: datetime | None
    until: datetime | None


class History(Repository):
    """Read-only repository of history lines, the record for auditors."""

    @reading
    def lines(
        self, *, after: str | None = None, limit: int = 50, **filters: Unpack[HistoryFilters]
    ) -> tuple[builtins.list[HistoryLine], str | None]:
        """Return a page of lines, the latest first."""
        return read_page(
            self._connection,
            _query(filters),
            [_LINE.at, _LINE.line_id],
            after,
            limit,
            _line,
            newest_first=True,
        )


def _query(filters: HistoryFilters) -> sa.Select[Any]:
    query = sa.select(
        _LINE.line_id,
        _LINE.at,
        _LINE.cast_id,
        _CAST.plan["name"].as_string().label("cast_name"),
        _CAST.created_by,
        _LINE.image_id,
        _CAST.image_name,
        _LINE.room_id,
        _LINE.machine_id,
        _LINE.name.label("machine_name"),
        _LINE.serial,
        _LINE.asset_tag,
        _LINE.state,
        _LINE.error,
        _LINE.exit_code,
        _LINE.bytes_verified,
        _LINE.bytes_kept,
        _LINE.blocks_rewritten,
        _LINE.seconds,
        _LINE.loss,
        _LINE.joined_at,
        _LINE.ended_at,
        _CAST.image_signer,
        _CAST.image_version,
        _LINE.unsigned_allowed,
        _LINE.patch_id,
    ).join(tables.casts, _CAST.cast_id == _LINE.cast_id)
    for name in ("machine_id", "image_id", "room_id", "cast_id", "state"):
        value = filters.get(name)
        if value is not None:
            query = query.where(_LINE[name] == value)
    since, until = filters.get("since"), filters.get("until")
    if since is not None:
        query = query.where(_LINE.at >= since)
    if until is not None:
        query = query.where(_LINE.at < until)
    return query


def _line(row: sa.RowMapping) -> HistoryLine:
    digest = ""
    if row["patch_id"]:
        digest = machine_digest(bytes.fromhex(row["image_id"]), bytes.fromhex(row["patch_id"])).hex()
    fields = {name: row[name] for name in _NAMES}
    return HistoryLine(state=MachineState(row["state"]), machine_digest=digest, **fields)
