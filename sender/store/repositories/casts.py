"""Casts: their plans, how they went, what they did to each machine, and what operators ask of them."""

from __future__ import annotations

import builtins
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypedDict, Unpack

import sqlalchemy as sa
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from protocol.errors import DatabaseDamagedError
from sender.store.database import tables
from sender.store.database.errors import ConflictError
from sender.store.machines.identity import parts, serial_and_tag
from sender.store.records.casts import (
    Cast,
    CastEvent,
    CastMachine,
    CastPhase,
    CastPlan,
    CastRequest,
    Command,
    TimelinePoint,
)
from sender.store.records.machine_states import MachineState
from sender.store.repositories.audit import Audit, AuditNote
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import Database, Repository, reading, writing, writing_again

EVENTS_MAX = 5000
"""Events of a cast that are read at once: joins and ends of 1024 machines, several times over."""
TIMELINE_BYTES_MAX = 16 << 20
"""An unpacked timeline: 1200 points are a few hundred kB."""

PLAN_ADAPTER: Final = TypeAdapter(CastPlan)
_POINTS: Final = TypeAdapter(list[TimelinePoint])
_CAST = tables.casts.c
_LINE = tables.cast_machines.c
OPEN_PHASES = tuple(phase.value for phase in CastPhase if not phase.ended)
_OPPOSITE = {Command.PAUSE: Command.RESUME, Command.RESUME: Command.PAUSE}
_IDENTITY = ("image_id", "room_id", "serial", "asset_tag", "at", "cast_id", "machine_key")
"""Columns of a line that stay as they were first written: what was imaged there and then."""


_PROGRESS = ("seconds", "bytes_sent", "progress", "joined_count", "complete_count", "failed_count")
_FIXED = ("cast_id", "plan", "created_at", "created_by", "schedule_id", "run_count", "owner")
_CHANGING = tuple(name for name in Cast.__dataclass_fields__ if name not in _FIXED)


class CastUpdate(TypedDict, total=False):
    """What of a cast changes, before it runs or while it does."""

    plan: CastPlan
    phase: CastPhase
    paused: bool
    owner: str
    group: str
    port: int
    control_url: str
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


class Casts(Repository):
    """The casts.

    Methods that a running cast calls take ``lease``: the change is made only while that owner holds the cast's lease,
    so that a daemon that was cut off can't overwrite what its successor has written since.
    """

    def __init__(self, database: Database, audit: Audit) -> None:
        super().__init__(database)
        self._audit = audit

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
        audit: AuditNote | None = None,
    ) -> Cast:
        """Record a planned cast; ``ConflictError`` if its id is taken: draw another."""
        if self._get(cast_id) is not None:
            raise ConflictError(f"cast {cast_id} is there already; choose another id")
        self._connection.execute(
            sa.insert(tables.casts).values(
                cast_id=cast_id,
                plan=to_jsonable_python(plan),
                image_id=plan.image_id,
                room_id=plan.room_id,
                start_at=plan.start_at,
                image_name=image_name,
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
        }
        self._audit.note(audit, "cast.create", f"cast {cast_id}", detail)
        added = self._get(cast_id)
        assert added is not None
        return added

    @reading
    def get(self, cast_id: str) -> Cast | None:
        """One cast, or None."""
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
        """Casts, the newest first; ``ended`` chooses those that are over, or those that aren't.

        ``phases_now`` are the phases of some casts by id, as far as they may not be recorded yet.
        """
        query = sa.select(tables.casts)
        if phase is not None:
            known = phases_now or {}
            now_in_it = [cast_id for cast_id, now in known.items() if now is phase]
            recorded = sa.and_(_CAST.phase == phase, _CAST.cast_id.not_in(known))
            query = query.where(sa.or_(recorded, _CAST.cast_id.in_(now_in_it)))
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
        """Casts that haven't ended, of all daemons, the oldest first."""
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
            The cast as it is then; None if there is none, or ``lease`` doesn't hold it any more.
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
        # A change of nothing still says whether the cast is there and whose it is.
        query = query.values(**(values or {"cast_id": cast_id}))
        if self._connection.execute(query).rowcount == 0:
            return None
        self._audit.note(audit, "cast.change", f"cast {cast_id}", to_jsonable_python(dict(fields)))
        return self._get(cast_id)

    @writing
    def save(self, cast: Cast) -> bool:
        """Replace what changes in a cast by what ``cast`` says; what was asked for (its plan) stays.

        The cast's ``run_count`` must still be the recorded one: a daemon that was cut off while another took the cast
        over doesn't overwrite what that one has written. Returns whether it was. What was asked of a cast that has
        ended is forgotten.
        """
        saved = self._save(cast, _CHANGING)
        if saved and cast.phase.ended:
            asked = tables.cast_requests
            self._connection.execute(sa.delete(asked).where(asked.c.cast_id == cast.cast_id))
        return saved

    @writing
    def save_progress(self, cast: Cast) -> bool:
        """:meth:`save` for what changes all the time: how far it is. What has ended is left as it is."""
        return self._save(cast, _PROGRESS, _CAST.phase.in_(OPEN_PHASES))

    @reading
    def machines(self, cast_id: str) -> builtins.list[CastMachine]:
        """What it did to each machine, in the order in which it met them."""
        rows = self._connection.execute(
            sa.select(tables.cast_machines).where(_LINE.cast_id == cast_id).order_by(_LINE.line_id)
        )
        return [_machine_of_row(row) for row in rows.mappings()]

    def put_machine(self, machine: CastMachine, *, lease: str | None = None) -> bool:
        """:meth:`put_machines` for one."""
        return self.put_machines([machine], lease=lease)

    @writing_again
    def put_machines(self, machines: Sequence[CastMachine], *, lease: str | None = None) -> bool:
        """Add or replace what casts did to machines; of several for one machine the last counts.

        Returns:
            False, and nothing is written, if a cast isn't there or isn't ``lease``'s any more.
        """
        cast_ids = {machine.cast_id for machine in machines}
        query = sa.select(
            _CAST.cast_id, _CAST.image_id, _CAST.room_id, _CAST.lease_owner, _CAST.created_at
        ).where(_CAST.cast_id.in_(cast_ids))
        casts = {row.cast_id: row for row in self._connection.execute(query)}
        if casts.keys() != cast_ids or (
            lease is not None and any(row.lease_owner != lease for row in casts.values())
        ):
            return False
        known = serial_and_tag(self._connection, [m.machine_id for m in machines if m.machine_id])
        told: dict[tuple[str, str], dict[str, Any]] = {}
        for machine in machines:
            cast = casts[machine.cast_id]
            serial, asset_tag, room_id = known.get(machine.machine_id or "", ("", "", None))
            line = {
                field: getattr(machine, field)
                for field in CastMachine.__dataclass_fields__
                if field != "cast_id"
            }
            line |= {
                "cast_id": machine.cast_id,
                "machine_key": machine.machine_id or f"name:{machine.name}",
                "image_id": cast.image_id,
                "room_id": cast.room_id or room_id,
                "serial": serial,
                "asset_tag": asset_tag,
                "at": machine.joined_at or self._now(),
            }
            told[line["cast_id"], line["machine_key"]] = line
        lines = builtins.list(told.values())
        there = self._lines(cast_ids, [line["machine_key"] for line in lines])
        new = [line for line in lines if (line["cast_id"], line["machine_key"]) not in there]
        changed = []
        for line in lines:
            line_id, state = there.get((line["cast_id"], line["machine_key"]), (None, ""))
            # A machine that has verified every byte has done so, whatever a daemon says that was cut off before.
            if line_id is not None and (
                state != MachineState.COMPLETE or line["state"] == MachineState.COMPLETE
            ):
                values = {name: value for name, value in line.items() if name not in _IDENTITY}
                changed.append({"the_line_id": line_id, **values})
        if new:
            self._connection.execute(sa.insert(tables.cast_machines), new)
        if changed:
            update = sa.update(tables.cast_machines).where(_LINE.line_id == sa.bindparam("the_line_id"))
            self._connection.execute(update, changed)
        return True

    @reading
    def latest_of_machines(self, machine_ids: Iterable[str]) -> dict[str, CastMachine]:
        """What happened to each of these machines last; those that were never cast to are left out."""
        wanted = builtins.list(dict.fromkeys(machine_ids))
        found: dict[str, CastMachine] = {}
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            # One index probe a machine, however long its history is.
            asked = sa.select(tables.machines.c.machine_id).where(tables.machines.c.machine_id.in_(part))
            newest = (
                sa.select(_LINE.line_id)
                .where(_LINE.machine_id == tables.machines.c.machine_id)
                .order_by(_LINE.at.desc(), _LINE.line_id.desc())
                .limit(1)
                .correlate(tables.machines)
                .scalar_subquery()
            )
            ids = self._connection.execute(asked.with_only_columns(newest)).scalars()
            rows = self._connection.execute(
                sa.select(tables.cast_machines).where(_LINE.line_id.in_([i for i in ids if i is not None]))
            )
            for row in rows.mappings():
                found[row["machine_id"]] = _machine_of_row(row)
        return found

    @reading
    def events(self, cast_id: str) -> builtins.list[CastEvent]:
        """Its last :data:`EVENTS_MAX` events, in order of time."""
        event = tables.cast_events.c
        rows = self._connection.execute(
            sa.select(event.at, event.kind, event.machine, event.text)
            .where(event.cast_id == cast_id)
            .order_by(event.at.desc(), event.event_id.desc())
            .limit(EVENTS_MAX)
        )
        return [CastEvent(**row) for row in reversed(rows.mappings().all())]

    @writing
    def add_event(self, cast_id: str, event: CastEvent) -> None:
        """Add an event; one that stands there already is left as it is, one of a cast that is gone is dropped."""
        if self._connection.execute(sa.select(_CAST.cast_id).where(_CAST.cast_id == cast_id)).first():
            values = {"at": event.at, "kind": event.kind, "machine": event.machine, "text": event.text}
            insert = self._database.insert(tables.cast_events).values(cast_id=cast_id, **values)
            self._connection.execute(
                insert.on_conflict_do_nothing(index_elements=["cast_id", "at", "kind", "machine"])
            )

    @reading
    def timeline(self, cast_id: str) -> builtins.list[TimelinePoint]:
        """Its seconds; empty if nobody wrote them."""
        timeline = tables.cast_timelines.c
        packed = self._connection.execute(
            sa.select(timeline.points).where(timeline.cast_id == cast_id)
        ).scalar_one_or_none()
        if packed is None:
            return []
        try:
            unpacked = zlib.decompressobj().decompress(packed, TIMELINE_BYTES_MAX)
            return _POINTS.validate_python(json.loads(unpacked))
        except (zlib.error, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DatabaseDamagedError(
                f"database {self._database.place.text}: the timeline of cast {cast_id} can't be read ({error}); run "
                "`diskcast database check`"
            ) from error

    @writing
    def put_timeline(
        self, cast_id: str, points: Sequence[TimelinePoint], *, lease: str | None = None
    ) -> bool:
        """Replace its seconds; False if there is no such cast or it isn't ``lease``'s any more."""
        owner = self._connection.execute(
            sa.select(_CAST.lease_owner).where(_CAST.cast_id == cast_id)
        ).scalar_one_or_none()
        if owner is None or lease not in (None, owner):
            return False
        packed = zlib.compress(
            json.dumps(to_jsonable_python(builtins.list(points)), separators=(",", ":")).encode()
        )
        insert = self._database.insert(tables.cast_timelines).values(cast_id=cast_id, points=packed)
        self._connection.execute(
            insert.on_conflict_do_update(index_elements=["cast_id"], set_={"points": insert.excluded.points})
        )
        return True

    @writing
    def request(self, request: CastRequest, *, audit: AuditNote | None = None) -> bool:
        """Ask something of the daemon that runs the cast; False if the cast isn't there or has ended.

        What was asked before and is undone by it (pause and resume; everything by cancel) is forgotten.
        """
        cast_id, command = request.cast_id, request.command
        # Locked, so that the cast doesn't end meanwhile (ignored by SQLite, which has one writer at a time).
        query = sa.select(_CAST.phase).where(_CAST.cast_id == cast_id).with_for_update()
        phase = self._connection.execute(query).scalar_one_or_none()
        if phase is None or CastPhase(phase).ended:
            return False
        asked = tables.cast_requests
        undone = sa.delete(asked).where(asked.c.cast_id == cast_id)
        if command is not Command.CANCEL:
            undone = undone.where(asked.c.command == _OPPOSITE.get(command, ""))
        self._connection.execute(undone)
        insert = self._database.insert(asked).values(
            cast_id=cast_id, command=command, actor=request.actor, reason=request.reason
        )
        self._connection.execute(insert.on_conflict_do_nothing(index_elements=["cast_id", "command"]))
        self._audit.note(audit, f"cast.{command}", f"cast {cast_id}")
        return True

    @reading
    def requests(self, owner: str) -> builtins.list[CastRequest]:
        """What is asked of the casts whose lease ``owner`` holds, in the order in which it was asked."""
        asked = tables.cast_requests.c
        rows = self._connection.execute(
            sa.select(asked.cast_id, asked.command, asked.actor, asked.reason)
            .join(tables.casts, _CAST.cast_id == asked.cast_id)
            .where(_CAST.lease_owner == owner)
            .order_by(asked.request_id)
        )
        return [CastRequest(row.cast_id, Command(row.command), row.actor, row.reason) for row in rows]

    @writing
    def clear_request(self, cast_id: str, command: Command | None = None) -> None:
        """It was obeyed; None: everything that was asked of the cast."""
        asked = tables.cast_requests
        query = sa.delete(asked).where(asked.c.cast_id == cast_id)
        self._connection.execute(query if command is None else query.where(asked.c.command == command))

    def _save(self, cast: Cast, names: Iterable[str], *conditions: sa.ColumnElement[bool]) -> bool:
        values = {"group_address" if name == "group" else name: getattr(cast, name) for name in names}
        query = sa.update(tables.casts).where(
            _CAST.cast_id == cast.cast_id, _CAST.run_count == cast.run_count, *conditions
        )
        return self._connection.execute(query.values(**values)).rowcount == 1

    def _lines(self, cast_ids: Iterable[str], keys: Sequence[str]) -> dict[tuple[str, str], tuple[int, str]]:
        """Id and state of the lines that are there already."""
        found: dict[tuple[str, str], tuple[int, str]] = {}
        for part in parts(keys):
            query = sa.select(_LINE.line_id, _LINE.cast_id, _LINE.machine_key, _LINE.state)
            query = query.where(_LINE.cast_id.in_(cast_ids), _LINE.machine_key.in_(part))
            for row in self._connection.execute(query):
                found[row.cast_id, row.machine_key] = (row.line_id, row.state)
        return found

    def _get(self, cast_id: str) -> Cast | None:
        row = (
            self._connection.execute(sa.select(tables.casts).where(_CAST.cast_id == cast_id))
            .mappings()
            .first()
        )
        return None if row is None else cast_of_row(row)


def cast_of_row(row: sa.RowMapping) -> Cast:
    """The record of a row of ``casts``."""
    values = {name: row[name] for name in Cast.__dataclass_fields__ if name not in ("plan", "phase", "group")}
    return Cast(
        plan=PLAN_ADAPTER.validate_python(row["plan"]),
        phase=CastPhase(row["phase"]),
        group=row["group_address"],
        **values,
    )


def _machine_of_row(row: sa.RowMapping) -> CastMachine:
    values = {name: row[name] for name in CastMachine.__dataclass_fields__ if name != "state"}
    return CastMachine(state=MachineState(row["state"]), **values)
