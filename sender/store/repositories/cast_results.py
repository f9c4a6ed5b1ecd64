"""Results of casts, one per machine."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.machines.identity import chunks, serial_and_tag
from sender.store.records.casts import CastMachine
from sender.store.records.machine_states import MachineState
from sender.store.repositories.transactions import Repository, reading, writing_again

_CAST = tables.casts.c
_LINE = tables.cast_machines.c
_IDENTITY = ("image_id", "room_id", "serial", "asset_tag", "at", "cast_id", "machine_key")
"""Columns that keep their first values: the image, place and identity of the machine at the time of the cast."""


class CastResults(Repository):
    """Repository of casts' results."""

    @reading
    def machines(self, cast_id: str) -> builtins.list[CastMachine]:
        """Return the results of a cast's machines, in the order in which the cast first named them."""
        rows = self._connection.execute(
            sa.select(tables.cast_machines).where(_LINE.cast_id == cast_id).order_by(_LINE.line_id)
        )
        return [_machine_of_row(row) for row in rows.mappings()]

    def put_machine(self, machine: CastMachine, *, lease: str | None = None) -> bool:
        """Call :meth:`put_machines` for one machine."""
        return self.put_machines([machine], lease=lease)

    @writing_again
    def put_machines(self, machines: Sequence[CastMachine], *, lease: str | None = None) -> bool:
        """Add or replace results; of several for one machine and cast the last counts.

        Returns:
            False, without writing anything, if a cast doesn't exist or ``lease`` no longer holds it.
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
        lines = list(
            {
                (line["cast_id"], line["machine_key"]): line
                for line in (
                    _line(machine, casts[machine.cast_id], known.get(machine.machine_id or ""), self._now())
                    for machine in machines
                )
            }.values()
        )
        recorded = self._recorded_lines(cast_ids, [line["machine_key"] for line in lines])
        new, changed = [], []
        for line in lines:
            if (line["cast_id"], line["machine_key"]) not in recorded:
                new.append(line)
                continue
            line_id, state = recorded[line["cast_id"], line["machine_key"]]
            # A complete machine stays complete, even if a daemon that was cut off earlier reports otherwise.
            if state != MachineState.COMPLETE or line["state"] == MachineState.COMPLETE:
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
        """Return the latest result of each machine; machines without any are left out."""
        found: dict[str, CastMachine] = {}
        for chunk in chunks(list(dict.fromkeys(machine_ids))):
            # One index probe per machine, however long its history is.
            machine = tables.machines.c.machine_id
            latest = (
                sa.select(_LINE.line_id)
                .where(_LINE.machine_id == machine)
                .order_by(_LINE.at.desc(), _LINE.line_id.desc())
                .limit(1)
                .correlate(tables.machines)
                .scalar_subquery()
            )
            ids = self._connection.execute(sa.select(latest).where(machine.in_(chunk))).scalars()
            rows = self._connection.execute(
                sa.select(tables.cast_machines).where(_LINE.line_id.in_([i for i in ids if i is not None]))
            )
            for row in rows.mappings():
                found[row["machine_id"]] = _machine_of_row(row)
        return found

    def _recorded_lines(
        self, cast_ids: Iterable[str], keys: Sequence[str]
    ) -> dict[tuple[str, str], tuple[int, str]]:
        """Return id and state of the recorded lines, by cast and machine key."""
        found: dict[tuple[str, str], tuple[int, str]] = {}
        for chunk in chunks(keys):
            query = sa.select(_LINE.line_id, _LINE.cast_id, _LINE.machine_key, _LINE.state)
            query = query.where(_LINE.cast_id.in_(cast_ids), _LINE.machine_key.in_(chunk))
            for row in self._connection.execute(query):
                found[row.cast_id, row.machine_key] = (row.line_id, row.state)
        return found


def _line(
    machine: CastMachine, cast: Any, known: tuple[str, str, str | None] | None, now: datetime
) -> dict[str, Any]:
    serial, asset_tag, room_id = known or ("", "", None)
    return {name: getattr(machine, name) for name in CastMachine.__dataclass_fields__} | {
        "machine_key": machine.machine_id or f"name:{machine.name}",
        "image_id": cast.image_id,
        "room_id": cast.room_id or room_id,
        "serial": serial,
        "asset_tag": asset_tag,
        "at": machine.joined_at or now,
    }


def _machine_of_row(row: sa.RowMapping) -> CastMachine:
    values = {name: row[name] for name in CastMachine.__dataclass_fields__ if name != "state"}
    return CastMachine(state=MachineState(row["state"]), **values)
