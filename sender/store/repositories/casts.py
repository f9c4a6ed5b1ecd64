"""Casts: their plans, phases and progress."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, TypedDict, Unpack

import sqlalchemy as sa
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from sender.store.database import tables
from sender.store.database.errors import ConflictError
from sender.store.records.casts import Cast, CastPhase, CastPlan
from sender.store.repositories.audit import AuditNote
from sender.store.repositories.cast_requests import CastRequests
from sender.store.repositories.cast_results import CastResults
from sender.store.repositories.cast_timelines import CastTimelines
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import reading, writing

PLAN_ADAPTER: Final = TypeAdapter(CastPlan)
OPEN_PHASES = tuple(phase.value for phase in CastPhase if not phase.ended)

_CAST = tables.casts.c
_PROGRESS = ("seconds", "bytes_sent", "progress", "joined_count", "complete_count", "failed_count")
_FIXED = (
    "cast_id",
    "plan",
    "created_at",
    "created_by",
    "schedule_id",
    "run_count",
    "owner",
    "image_signer",
    "image_version",
)
_CHANGING = tuple(name for name in Cast.__dataclass_fields__ if name not in _FIXED)


class CastUpdate(TypedDict, total=False):
    """Fields of a cast that can change, before it runs or while it runs."""

    plan: CastPlan
    phase: CastPhase
    paused: bool
    owner: str
    group: str
    port: int
    control_url: str
    control_pin: str
    required_count: int
    run_count: int
    gathering_at: datetime | None
    casting_at: datetime | None
    ended_at: datetime | None
    reason: str
    seconds: float
    bytes_sent: int
    progress: float
    joined_count: int
    complete_count: int
    failed_count: int
    image_name: str
    raw_bytes: int


class Casts(CastResults, CastTimelines, CastRequests):
    """Repository of casts, with their results, timelines and requested commands.

    Methods that a running cast calls take ``lease``: they write only while that owner holds the cast's lease. A daemon
    that was cut off can't overwrite what its successor has written since.
    """

    @writing
    def add(
        self,
        plan: CastPlan,
        cast_id: str,
        image_name: str,
        raw_bytes: int,
        required_count: int,
        created_by: str,
        schedule_id: str | None = None,
        *,
        image_signer: str = "",
        image_version: str = "",
        audit: AuditNote | None = None,
    ) -> Cast:
        """Add a planned cast; raise ``ConflictError`` if its id is taken."""
        if self._get(cast_id) is not None:
            raise ConflictError(f"cast {cast_id} exists already; choose another id")
        self._connection.execute(
            sa.insert(tables.casts).values(
                cast_id=cast_id,
                plan=to_jsonable_python(plan),
                image_id=plan.image_id,
                room_id=plan.room_id,
                start_at=plan.start_at,
                image_name=image_name,
                image_signer=image_signer,
                image_version=image_version,
                raw_bytes=raw_bytes,
                phase=CastPhase.PLANNED,
                paused=False,
                owner="",
                group_address="",
                port=0,
                control_url="",
                required_count=required_count,
                run_count=0,
                created_at=self._now(),
                created_by=created_by,
                schedule_id=schedule_id,
                reason="",
                seconds=0.0,
                bytes_sent=0,
                progress=0.0,
                joined_count=0,
                complete_count=0,
                failed_count=0,
                lease_owner="",
                lease_beat=0,
            )
        )
        detail = {
            "plan": to_jsonable_python(plan),
            "image_name": image_name,
            "required_count": required_count,
            "image_signer": image_signer,
            "image_version": image_version,
        }
        self._audit.note(audit, "cast.create", f"cast {cast_id}", detail)
        added = self._get(cast_id)
        assert added is not None
        return added

    @reading
    def get(self, cast_id: str) -> Cast | None:
        """Return a cast, or None."""
        return self._get(cast_id)

    @reading
    def list(
        self,
        phase: CastPhase | None = None,
        room_id: str | None = None,
        after: str | None = None,
        limit: int = 50,
        *,
        ended: bool | None = None,
        phases_now: Mapping[str, CastPhase] | None = None,
    ) -> tuple[builtins.list[Cast], str | None]:
        """Return a page of casts, the latest first.

        Args:
            phase: only casts in this phase.
            room_id: only casts for this room.
            after: cursor of the page before.
            limit: casts per page.
            ended: only casts that have ended, or only casts that haven't.
            phases_now: current phases of some casts, by id, which may not be recorded yet.
        """
        query = sa.select(tables.casts)
        if phase is not None:
            current = phases_now or {}
            in_phase = [cast_id for cast_id, now in current.items() if now is phase]
            recorded = sa.and_(_CAST.phase == phase, _CAST.cast_id.not_in(current))
            query = query.where(sa.or_(recorded, _CAST.cast_id.in_(in_phase)))
        if room_id is not None:
            query = query.where(_CAST.room_id == room_id)
        if ended is not None:
            condition = _CAST.phase.in_(OPEN_PHASES)
            query = query.where(sa.not_(condition) if ended else condition)
        return read_page(
            self._connection,
            query,
            [_CAST.created_at, _CAST.cast_id],
            after,
            limit,
            cast_of_row,
            newest_first=True,
        )

    @reading
    def unfinished(self) -> builtins.list[Cast]:
        """Return the casts of all daemons that haven't ended, the oldest first."""
        query = sa.select(tables.casts).where(_CAST.phase.in_(OPEN_PHASES))
        rows = self._connection.execute(query.order_by(_CAST.created_at, _CAST.cast_id))
        return [cast_of_row(row) for row in rows.mappings()]

    @writing
    def change(
        self,
        cast_id: str,
        *,
        lease: str | None = None,
        audit: AuditNote | None = None,
        **fields: Unpack[CastUpdate],
    ) -> Cast | None:
        """Change some fields.

        Returns:
            The changed cast; None if it doesn't exist or ``lease`` no longer holds it.
        """
        values: dict[str, Any] = dict(fields)
        if "group" in values:
            values["group_address"] = values.pop("group")
        if "plan" in values:
            plan = values["plan"]
            values |= {"plan": to_jsonable_python(plan), "image_id": plan.image_id, "room_id": plan.room_id}
            values["start_at"] = plan.start_at
        query = sa.update(tables.casts).where(_CAST.cast_id == cast_id)
        if lease is not None:
            query = query.where(_CAST.lease_owner == lease)
        # Even an update without values checks that the cast exists and that the lease holds it.
        query = query.values(**(values or {"cast_id": cast_id}))
        if self._connection.execute(query).rowcount == 0:
            return None
        self._audit.note(audit, "cast.change", f"cast {cast_id}", to_jsonable_python(dict(fields)))
        return self._get(cast_id)

    @writing
    def save(self, cast: Cast) -> bool:
        """Replace the changing fields of a cast (not its plan); remove requests if the cast has ended.

        Returns:
            False, without writing anything, if ``run_count`` isn't the recorded one: a daemon that was cut off while
            another took the cast over must not overwrite its successor's values.
        """
        saved = self._save(cast, _CHANGING)
        if saved and cast.phase.ended:
            requests = tables.cast_requests
            self._connection.execute(sa.delete(requests).where(requests.c.cast_id == cast.cast_id))
        return saved

    @writing
    def save_progress(self, cast: Cast) -> bool:
        """Replace the progress fields of a cast that hasn't ended, under the condition of :meth:`save`."""
        return self._save(cast, _PROGRESS, _CAST.phase.in_(OPEN_PHASES))

    @writing
    def join_key(self, cast_id: str, fresh: bytes) -> bytes:
        """Return the key of a cast's tickets; it is ``fresh`` if the cast had none. Every daemon gets the same key.

        Raises:
            ConflictError: the cast was removed.
        """
        insert = self._database.insert(tables.cast_keys).values(cast_id=cast_id, join_key=fresh)
        self._connection.execute(insert.on_conflict_do_nothing(index_elements=["cast_id"]))
        query = sa.select(tables.cast_keys.c.join_key).where(tables.cast_keys.c.cast_id == cast_id)
        return bytes(self._connection.execute(query).scalar_one())

    def _save(self, cast: Cast, names: Iterable[str], *conditions: sa.ColumnElement[bool]) -> bool:
        values = {"group_address" if name == "group" else name: getattr(cast, name) for name in names}
        query = sa.update(tables.casts).where(
            _CAST.cast_id == cast.cast_id, _CAST.run_count == cast.run_count, *conditions
        )
        return self._connection.execute(query.values(**values)).rowcount == 1

    def _get(self, cast_id: str) -> Cast | None:
        query = sa.select(tables.casts).where(_CAST.cast_id == cast_id)
        row = self._connection.execute(query).mappings().first()
        return None if row is None else cast_of_row(row)


def cast_of_row(row: sa.RowMapping) -> Cast:
    """Return the record of a row of ``casts``."""
    values = {name: row[name] for name in Cast.__dataclass_fields__ if name not in ("plan", "phase", "group")}
    return Cast(
        plan=PLAN_ADAPTER.validate_python(row["plan"]),
        phase=CastPhase(row["phase"]),
        group=row["group_address"],
        **values,
    )
