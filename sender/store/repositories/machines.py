"""Machines: found by their identifiers, kept whether they are switched on or not."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict, Unpack

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.database.errors import ConflictError
from sender.store.machines.csv_import import ImportRow, read_rows
from sender.store.machines.identity import (
    MACS_MAX,
    MachineFingerprint,
    chunks,
    distinct_runs,
    find_machine,
    find_machines,
    normal_mac,
)
from sender.store.machines.machine_report import (
    MachineReport,
    blank_machine,
    check_in_changes,
    fingerprint_of,
    new_machine,
    new_machine_id,
    valid_macs,
)
from sender.store.records.machines import ImportProblem, ImportResult, Machine
from sender.store.repositories.audit import AuditNote
from sender.store.repositories.machine_hardware import matching_hardware, write_hardware
from sender.store.repositories.machine_rows import MachineRows
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import reading, writing, writing_again

ROOM_MACHINES_MAX = 10_000
"""Machines of a room that one call reads; a cast takes 1024."""

_OPERATOR_FIELDS = ("name", "room_id", "serial", "asset_tag", "position", "note")
"""Fields of a new machine that the operator sets, besides its addresses."""
_MACHINE = tables.machines.c
_OWNED = tables.machine_macs.c


class MachineUpdate(TypedDict, total=False):
    """Fields of a machine that can change."""

    name: str
    room_id: str | None
    macs: tuple[str, ...]
    serial: str
    asset_tag: str
    position: str
    note: str
    next_boot: str


class Machines(MachineRows):
    """Repository of machines."""

    @writing
    def add(self, machine: Machine, *, audit: AuditNote | None = None) -> Machine:
        """Add a machine; create its id if it is empty.

        Raises ``ConflictError`` if the id or a hardware address is taken, or the room doesn't exist.
        """
        machine_id = machine.machine_id or new_machine_id()
        if self._get(machine_id) is not None:
            raise ConflictError(f"machine {machine_id} exists already; choose another id, or none")
        macs = self._free_macs(machine.macs, machine_id)
        self._check_room(machine.room_id)
        self._insert([dataclasses.replace(machine, machine_id=machine_id, macs=macs)])
        detail = {name: getattr(machine, name) for name in _OPERATOR_FIELDS}
        self._audit.note(audit, "machine.create", f"machine {machine_id}", {**detail, "macs": list(macs)})
        added = self._get(machine_id)
        assert added is not None
        return added

    @reading
    def get(self, machine_id: str) -> Machine | None:
        """Return a machine, or None."""
        return self._get(machine_id)

    @reading
    def list(
        self, room_id: str | None = None, search: str = "", after: str | None = None, limit: int = 50
    ) -> tuple[builtins.list[Machine], str | None]:
        """Return a page of machines, of one room or of all, by name.

        Every word of ``search`` is part of a machine's name, position, note, address, identifiers or hardware.
        """
        query = sa.select(tables.machines)
        if room_id is not None:
            query = query.where(_MACHINE.room_id == room_id)
        for word in search.lower().split():
            query = query.where(_has_word(word))
        rows, cursor = read_page(
            self._connection, query, [_MACHINE.name, _MACHINE.machine_id], after, limit, lambda row: row
        )
        return self._machines(rows), cursor

    @reading
    def of_room(self, room_id: str) -> builtins.list[Machine]:
        """Return all machines of a room, by name."""
        query = sa.select(tables.machines).where(_MACHINE.room_id == room_id)
        query = query.order_by(_MACHINE.name, _MACHINE.machine_id).limit(ROOM_MACHINES_MAX)
        return self._machines(self._connection.execute(query).mappings().all())

    @reading
    def get_many(self, machine_ids: Sequence[str]) -> builtins.list[Machine]:
        """Return the existing ones of these machines, by name."""
        found: builtins.list[Machine] = []
        for chunk in chunks(builtins.list(dict.fromkeys(machine_ids))):
            query = sa.select(tables.machines).where(_MACHINE.machine_id.in_(chunk))
            found += self._machines(self._connection.execute(query).mappings().all())
        return sorted(found, key=lambda machine: (machine.name, machine.machine_id))

    @reading
    def count(self, room_id: str | None = None) -> int:
        """Return the number of machines, of one room or of all."""
        query = sa.select(sa.func.count()).select_from(tables.machines)
        if room_id is not None:
            query = query.where(_MACHINE.room_id == room_id)
        return self._connection.execute(query).scalar_one()

    @writing
    def change(
        self, machine_id: str, *, audit: AuditNote | None = None, **fields: Unpack[MachineUpdate]
    ) -> Machine | None:
        """Change some fields and return the changed machine; None if it doesn't exist.

        Raises ``ConflictError`` as :meth:`add` does.
        """
        before = self._get(machine_id)
        if before is None:
            return None
        values: dict[str, Any] = dict(fields)
        if "macs" in values:
            values["macs"] = self._free_macs(values["macs"], machine_id)
        if "room_id" in values:
            self._check_room(values["room_id"])
        changed = {name: value for name, value in values.items() if getattr(before, name) != value}
        if not changed:
            return before
        self._update({machine_id: changed})
        old_values = {name: getattr(before, name) for name in changed}
        detail = {"from": old_values, "to": changed}
        self._audit.note(audit, "machine.change", f"machine {machine_id}", detail)
        return self._get(machine_id)

    @writing
    def remove(self, machine_id: str, *, audit: AuditNote | None = None) -> bool:
        """Remove a machine; its results stay in history. Return False if it doesn't exist."""
        before = self._get(machine_id)
        if before is None:
            return False
        self._lock([machine_id], ())
        self._connection.execute(sa.delete(tables.machine_macs).where(_OWNED.machine_id == machine_id))
        self._connection.execute(
            sa.delete(tables.machine_hardware).where(tables.machine_hardware.c.machine_id == machine_id)
        )
        self._connection.execute(sa.delete(tables.machines).where(_MACHINE.machine_id == machine_id))
        detail = {"name": before.name, "room_id": before.room_id, "macs": builtins.list(before.macs)}
        self._audit.note(audit, "machine.remove", f"machine {machine_id}", detail)
        return True

    @reading
    def find(self, macs: Sequence[str], serial: str, asset_tag: str) -> Machine | None:
        """Return the machine with these identifiers, as :func:`find_machines` matches them; None for a new one."""
        machine_id = find_machine(self._connection, fingerprint_of(valid_macs(macs), serial, asset_tag))
        return None if machine_id is None else self._get(machine_id)

    @writing_again
    def record(self, reports: Sequence[MachineReport]) -> builtins.list[Machine | None]:
        """Update the machines that their agents report, or add them; return them in the order of ``reports``.

        A report with a ``machine_id`` concerns only that machine; None if it was removed. A hundred reports cost little
        more than one.
        """
        fingerprints = [report.fingerprint for report in reports]
        machines: builtins.list[Machine | None] = []
        runs = builtins.list(distinct_runs(fingerprints))
        if len(runs) > 1:
            # Each run locks the rows that it changes. All rows are locked first, in one order: see _lock.
            found = self._ids_of(reports, fingerprints)
            self._lock([one for one in found if one], [mac for own in fingerprints for mac in own.macs])
        for run in runs:
            part = slice(run.start, run.stop)
            machines += self._record_distinct(reports[part], fingerprints[part])
        return machines

    def _ids_of(
        self, reports: Sequence[MachineReport], fingerprints: Sequence[MachineFingerprint]
    ) -> builtins.list[str | None]:
        """Return the proved id of each report, or else the id of the matching machine, or None."""
        matched = find_machines(self._connection, fingerprints)
        return [report.machine_id or found for report, found in zip(reports, matched, strict=True)]

    def _record_distinct(
        self, reports: Sequence[MachineReport], fingerprints: Sequence[MachineFingerprint]
    ) -> builtins.list[Machine | None]:
        """Record machines that have no identifier in common."""
        ids = self._ids_of(reports, fingerprints)
        known = {machine.machine_id: machine for machine in self.get_many([one for one in ids if one])}
        if len({one for one in ids if one}) < len(ids) - ids.count(None):
            # Two of them match one machine. The second is matched again, after the first has changed it.
            pairs = zip(reports, fingerprints, strict=True)
            return [machine for report, own in pairs for machine in self._record_distinct([report], [own])]
        now = self._now()
        owners = self._enrolled_owners([mac for fingerprint in fingerprints for mac in fingerprint.macs])
        claimed = {mac for fingerprint in fingerprints for mac in fingerprint.macs}
        machines: builtins.list[Machine | None] = []
        new: builtins.list[Machine] = []
        changes: dict[str, dict[str, Any]] = {}
        for report, fingerprint, machine_id in zip(reports, fingerprints, ids, strict=True):
            before = known.get(machine_id or "")
            # A member that reports the address of another one must not become its successor.
            own = tuple(mac for mac in fingerprint.macs if owners.get(mac, machine_id) == machine_id)
            if before is None and report.machine_id:
                machines.append(None)
                continue
            if before is None:
                machine = new_machine(report, own, now)
                new.append(machine)
            else:
                # Present adapters come first: beyond MACS_MAX, unplugged ones are dropped.
                rest = [mac for mac in before.macs if mac not in claimed or mac in owners]
                macs = tuple(dict.fromkeys((*own, *rest)))[:MACS_MAX]
                changed = check_in_changes(report, fingerprint, macs, before, now)
                if changed:
                    changes[before.machine_id] = changed
                machine = dataclasses.replace(before, **changed)
            machines.append(machine)
        self._write(new, changes)
        hardware = {
            machine.machine_id: report.hardware
            for report, machine in zip(reports, machines, strict=True)
            if machine is not None and report.hardware is not None
        }
        write_hardware(self._database, hardware)
        return machines

    def _enrolled_owners(self, macs: Sequence[str]) -> dict[str, str]:
        """Return the machines with a secret that have these addresses."""
        owners: dict[str, str] = {}
        for chunk in chunks(builtins.list(dict.fromkeys(macs))):
            query = sa.select(_OWNED.mac, _OWNED.machine_id).join(
                tables.machines, _OWNED.machine_id == _MACHINE.machine_id
            )
            query = query.where(_OWNED.mac.in_(chunk), _MACHINE.secret_hash != "")
            owners |= {row.mac: row.machine_id for row in self._connection.execute(query)}
        return owners

    @writing
    def touch(self, seen: Mapping[str, datetime]) -> None:
        """Update ``last_seen_at`` of machines, by id."""
        if seen:
            self._connection.execute(
                sa.update(tables.machines)
                .where(_MACHINE.machine_id == sa.bindparam("the_machine_id"))
                .values(last_seen_at=sa.bindparam("seen_at")),
                [{"the_machine_id": machine_id, "seen_at": at} for machine_id, at in sorted(seen.items())],
            )

    @writing
    def import_csv(self, room_id: str, text: str, *, audit: AuditNote | None = None) -> ImportResult:
        """Put the machines of a CSV file into a room: all of them, or none if a line has a problem.

        A machine is matched as in :meth:`find`, or else by its name in the room. Empty cells keep the recorded values.
        Raises ``ConflictError`` if the room doesn't exist.
        """
        self._check_room(room_id)
        now = self._now()
        rows, problems = read_rows(text)
        added: builtins.list[Machine] = []
        changes: dict[str, dict[str, Any]] = {}
        lines: dict[str, int] = {}
        for row, before in zip(rows, self._match_rows(room_id, rows), strict=True):
            values: dict[str, Any] = {
                name: value
                for name in ("name", "serial", "asset_tag", "position", "note")
                if (value := getattr(row, name))
            }
            values["room_id"] = room_id
            if before is None:
                added.append(dataclasses.replace(blank_machine(now), macs=row.macs, **values))
                continue
            if before.machine_id in lines:
                line = lines[before.machine_id]
                problems.append(
                    ImportProblem(
                        row.line,
                        f"this is the machine of line {line} again ({before.name}): remove one of the lines",
                    )
                )
                continue
            lines[before.machine_id] = row.line
            values["macs"] = (*before.macs, *(mac for mac in row.macs if mac not in before.macs))
            if len(values["macs"]) > MACS_MAX:
                problems.append(
                    ImportProblem(
                        row.line,
                        f"{before.name} would have more than {MACS_MAX} addresses: remove old ones first",
                    )
                )
            changed = {key: value for key, value in values.items() if getattr(before, key) != value}
            if changed:
                changes[before.machine_id] = changed
        if problems:
            return ImportResult(0, 0, 0, tuple(sorted(problems, key=lambda problem: problem.line)))
        self._write(added, changes)
        result = ImportResult(len(added), len(changes), len(lines) - len(changes), ())
        detail = {"added": result.added, "changed": result.changed, "unchanged": result.unchanged}
        self._audit.note(audit, "room.import", f"room {room_id}", detail)
        return result

    def _match_rows(self, room_id: str, rows: Sequence[ImportRow]) -> builtins.list[Machine | None]:
        """Return the recorded machine, or None, of each line of a file."""
        by_name = {machine.name: machine for machine in self.of_room(room_id)}
        fingerprints = [fingerprint_of(row.macs, row.serial, row.asset_tag) for row in rows]
        ids = find_machines(self._connection, fingerprints)
        known = {machine.machine_id: machine for machine in self.get_many([one for one in ids if one])}
        return [
            known[machine_id] if machine_id is not None else by_name.get(row.name)
            for row, machine_id in zip(rows, ids, strict=True)
        ]

    def _free_macs(self, macs: Sequence[str], machine_id: str) -> tuple[str, ...]:
        """Return the addresses in normal form; raise ``ConflictError`` if another machine has one of them."""
        wanted = tuple(dict.fromkeys(normal_mac(mac) for mac in macs))
        if len(wanted) > MACS_MAX:
            raise ConflictError(
                f"{len(wanted)} hardware addresses are too many for a machine; give at most {MACS_MAX}"
            )
        taken = self._connection.execute(
            sa.select(_OWNED.mac, _MACHINE.name, _MACHINE.machine_id)
            .join(tables.machines, _OWNED.machine_id == _MACHINE.machine_id)
            .where(_OWNED.mac.in_(wanted), _OWNED.machine_id != machine_id)
        ).first()
        if taken is not None:
            raise ConflictError(
                f"hardware address {taken.mac} belongs to machine {taken.name} ({taken.machine_id}); remove it there "
                "first"
            )
        return wanted

    def _check_room(self, room_id: str | None) -> None:
        room = tables.rooms.c.room_id
        if (
            room_id is not None
            and not self._connection.execute(sa.select(room).where(room == room_id)).first()
        ):
            raise ConflictError(f"there is no room {room_id!r}; add it first")


def _has_word(word: str) -> sa.ColumnElement[bool]:
    texts = (
        _MACHINE.name,
        _MACHINE.position,
        _MACHINE.note,
        _MACHINE.address,
        _MACHINE.serial,
        _MACHINE.asset_tag,
        _MACHINE.machine_id,
    )
    macs = sa.select(_OWNED.machine_id).where(_OWNED.mac.contains(word, autoescape=True))
    return sa.or_(
        *(sa.func.lower(text).contains(word, autoescape=True) for text in texts),
        _MACHINE.machine_id.in_(macs),
        _MACHINE.machine_id.in_(matching_hardware(word)),
    )
