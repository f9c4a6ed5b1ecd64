"""Machines: found by what they say of themselves, kept whether they are switched on or not."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict, Unpack

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.database.errors import ConflictError
from sender.store.machines.csv_import import read_rows
from sender.store.machines.enrolment import (
    Enrolment,
    blank_machine,
    check_in_changes,
    fingerprint_of,
    new_machine,
    new_machine_id,
    valid_macs,
)
from sender.store.machines.identity import (
    MACS_MAX,
    MachineFingerprint,
    distinct_runs,
    find_machine,
    find_machines,
    identity_key,
    normal_mac,
    parts,
)
from sender.store.records.machines import ImportProblem, ImportResult, Machine
from sender.store.repositories.audit import Audit, AuditNote
from sender.store.repositories.paging import read_page
from sender.store.repositories.transactions import Database, Repository, reading, writing, writing_again

ROOM_MACHINES_MAX = 10_000
"""Machines of a room that are read at once; a cast takes 1024."""

_OPERATORS = ("name", "room_id", "serial", "asset_tag", "position", "note")
"""What an operator says of a new machine, beside its addresses."""
_MACHINE = tables.machines.c
_OWNED = tables.machine_macs.c


class MachineUpdate(TypedDict, total=False):
    """What of a machine can be changed."""

    name: str
    room_id: str | None
    macs: tuple[str, ...]
    serial: str
    asset_tag: str
    position: str
    note: str


class Machines(Repository):
    """The machines."""

    def __init__(self, database: Database, audit: Audit) -> None:
        super().__init__(database)
        self._audit = audit

    @writing
    def add(self, machine: Machine, *, audit: AuditNote | None = None) -> Machine:
        """Add a machine; its id is chosen here if it is empty.

        ``ConflictError`` if the id or a hardware address is taken or the room isn't there.
        """
        machine_id = machine.machine_id or new_machine_id()
        if self._get(machine_id) is not None:
            raise ConflictError(f"machine {machine_id} is there already; choose another id, or none")
        macs = self._free_macs(machine.macs, machine_id)
        self._check_room(machine.room_id)
        self._insert([dataclasses.replace(machine, machine_id=machine_id, macs=macs)])
        detail = {name: getattr(machine, name) for name in _OPERATORS}
        self._audit.note(audit, "machine.create", f"machine {machine_id}", {**detail, "macs": list(macs)})
        added = self._get(machine_id)
        assert added is not None
        return added

    @reading
    def get(self, machine_id: str) -> Machine | None:
        """One machine, or None."""
        return self._get(machine_id)

    @reading
    def list(
        self, room_id: str | None = None, after: str | None = None, limit: int = 50
    ) -> tuple[builtins.list[Machine], str | None]:
        """Machines by name; of one room, or all."""
        query = sa.select(tables.machines)
        if room_id is not None:
            query = query.where(_MACHINE.room_id == room_id)
        rows, cursor = read_page(
            self._connection, query, [_MACHINE.name, _MACHINE.machine_id], after, limit, lambda row: row
        )
        return self._machines(rows), cursor

    @reading
    def of_room(self, room_id: str) -> builtins.list[Machine]:
        """All machines of a room, by name."""
        query = sa.select(tables.machines).where(_MACHINE.room_id == room_id)
        query = query.order_by(_MACHINE.name, _MACHINE.machine_id).limit(ROOM_MACHINES_MAX)
        return self._machines(self._connection.execute(query).mappings().all())

    @reading
    def get_many(self, machine_ids: Sequence[str]) -> builtins.list[Machine]:
        """Those of these machines that are there, by name."""
        found: builtins.list[Machine] = []
        for part in parts(builtins.list(dict.fromkeys(machine_ids))):
            query = sa.select(tables.machines).where(_MACHINE.machine_id.in_(part))
            found += self._machines(self._connection.execute(query).mappings().all())
        return sorted(found, key=lambda machine: (machine.name, machine.machine_id))

    @reading
    def count(self, room_id: str | None = None) -> int:
        """How many there are."""
        query = sa.select(sa.func.count()).select_from(tables.machines)
        if room_id is not None:
            query = query.where(_MACHINE.room_id == room_id)
        return self._connection.execute(query).scalar_one()

    @writing
    def change(
        self, machine_id: str, *, audit: AuditNote | None = None, **fields: Unpack[MachineUpdate]
    ) -> Machine | None:
        """Change some fields; None if there is no such machine, ``ConflictError`` as :meth:`add`."""
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
        was = {name: getattr(before, name) for name in changed}
        self._audit.note(audit, "machine.change", f"machine {machine_id}", {"from": was, "to": changed})
        return self._get(machine_id)

    @writing
    def remove(self, machine_id: str, *, audit: AuditNote | None = None) -> bool:
        """Forget a machine; what was cast to it stays in history. False if there is none."""
        before = self._get(machine_id)
        if before is None:
            return False
        self._lock([machine_id], ())
        self._connection.execute(sa.delete(tables.machine_macs).where(_OWNED.machine_id == machine_id))
        self._connection.execute(sa.delete(tables.machines).where(_MACHINE.machine_id == machine_id))
        detail = {"name": before.name, "room_id": before.room_id, "macs": builtins.list(before.macs)}
        self._audit.note(audit, "machine.remove", f"machine {machine_id}", detail)
        return True

    @reading
    def find(self, macs: Sequence[str], serial: str, asset_tag: str) -> Machine | None:
        """The machine that this is, as :func:`find_machine` decides; None for one that is new."""
        machine_id = find_machine(self._connection, fingerprint_of(valid_macs(macs), serial, asset_tag))
        return None if machine_id is None else self._get(machine_id)

    @writing_again
    def enrol(self, enrolments: Sequence[Enrolment]) -> builtins.list[Machine]:
        """Find the machines that check in, or add them without a room; note what they say of themselves.

        A machine's name, room, position and note are the operator's: an agent only names a machine that is new. A
        hundred cost little more than one.
        """
        identities = [
            fingerprint_of(valid_macs(told.macs), told.serial, told.asset_tag) for told in enrolments
        ]
        machines: builtins.list[Machine] = []
        runs = builtins.list(distinct_runs(identities))
        if len(runs) > 1:  # each locks what it changes; together they'd do so in any order
            found = find_machines(self._connection, identities)
            self._lock([one for one in found if one], [mac for own in identities for mac in own.macs])
        for run in runs:
            part = slice(run.start, run.stop)
            machines += self._enrol_apart(enrolments[part], identities[part])
        return machines

    def _enrol_apart(
        self, enrolments: Sequence[Enrolment], identities: Sequence[MachineFingerprint]
    ) -> builtins.list[Machine]:
        """:meth:`enrol` for what has no address, serial number or tag in common."""
        ids = find_machines(self._connection, identities)
        known = {machine.machine_id: machine for machine in self.get_many([one for one in ids if one])}
        if len(known) < len(ids) - ids.count(None):
            # Two say they are the same machine: the second is found as the first has left it.
            pairs = zip(enrolments, identities, strict=True)
            return [machine for told, own in pairs for machine in self._enrol_apart([told], [own])]
        now = self._now()
        claimed = {mac for identity in identities for mac in identity.macs}
        machines, new = [], []
        changes: dict[str, dict[str, Any]] = {}
        for told, identity, machine_id in zip(enrolments, identities, ids, strict=True):
            before = known.get(machine_id or "")
            if before is None:
                machine = new_machine(told, identity.macs, now)
                new.append(machine)
            else:
                # What it has now first: an adapter that isn't plugged in any more is the first to be forgotten.
                rest = [mac for mac in before.macs if mac not in claimed]
                changed = check_in_changes(told, identity, (*identity.macs, *rest)[:MACS_MAX], before, now)
                if changed:
                    changes[before.machine_id] = changed
                machine = dataclasses.replace(before, **changed)
            machines.append(machine)
        self._write(new, changes)
        return machines

    @writing
    def touch(self, seen: Mapping[str, datetime]) -> None:
        """Note when machines were last seen."""
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

        Machines are recognised as in :meth:`find`, and else by their name in the room. Cells that are empty leave what
        is recorded. ``ConflictError`` if there is no such room.
        """
        self._check_room(room_id)
        now = self._now()
        rows, problems = read_rows(text)
        by_name = {machine.name: machine for machine in self.of_room(room_id)}
        met: dict[str, int] = {}
        added: builtins.list[Machine] = []
        changes: dict[str, dict[str, Any]] = {}
        unchanged_count = 0
        identities = [fingerprint_of(row.macs, row.serial, row.asset_tag) for row in rows]
        machine_ids = find_machines(self._connection, identities)
        known = {item.machine_id: item for item in self.get_many([one for one in machine_ids if one])}
        for row, machine_id in zip(rows, machine_ids, strict=True):
            before = known[machine_id] if machine_id is not None else by_name.get(row.name)
            values: dict[str, Any] = {
                name: value
                for name in ("name", "serial", "asset_tag", "position", "note")
                if (value := getattr(row, name))
            }
            values["room_id"] = room_id
            if before is None:
                added.append(dataclasses.replace(blank_machine(now), macs=row.macs, **values))
                continue
            if before.machine_id in met:
                problems.append(
                    ImportProblem(
                        row.line,
                        f"this is the machine of line {met[before.machine_id]} again ({before.name}): "
                        "remove one of the lines",
                    )
                )
                continue
            met[before.machine_id] = row.line
            new_macs = (*before.macs, *(mac for mac in row.macs if mac not in before.macs))
            if len(new_macs) > MACS_MAX:
                problems.append(
                    ImportProblem(row.line, f"{before.name} would have more than {MACS_MAX} addresses")
                )
            values["macs"] = new_macs
            changed = {key: value for key, value in values.items() if getattr(before, key) != value}
            if changed:
                changes[before.machine_id] = changed
            else:
                unchanged_count += 1
        if problems:
            return ImportResult(0, 0, 0, tuple(sorted(problems, key=lambda problem: problem.line)))
        self._write(added, changes)
        result = ImportResult(len(added), len(changes), unchanged_count, ())
        detail = {"added": result.added, "changed": result.changed, "unchanged": result.unchanged}
        self._audit.note(audit, "room.import", f"room {room_id}", detail)
        return result

    # -- rows ------------------------------------------------------------------------------------------------------

    def _get(self, machine_id: str) -> Machine | None:
        query = sa.select(tables.machines).where(_MACHINE.machine_id == machine_id)
        found = self._machines(self._connection.execute(query).mappings().all())
        return found[0] if found else None

    def _machines(self, rows: Sequence[Mapping[Any, Any]]) -> builtins.list[Machine]:
        macs: dict[str, builtins.list[str]] = {row["machine_id"]: [] for row in rows}
        for part in parts(builtins.list(macs)):
            query = sa.select(_OWNED.machine_id, _OWNED.mac).where(_OWNED.machine_id.in_(part))
            for row in self._connection.execute(query.order_by(_OWNED.machine_id, _OWNED.order_index)):
                macs[row.machine_id].append(row.mac)
        plain = [name for name in Machine.__dataclass_fields__ if name != "macs"]
        return [
            Machine(macs=tuple(macs[row["machine_id"]]), **{name: row[name] for name in plain})
            for row in rows
        ]

    def _lock(self, machine_ids: Iterable[str], macs: Sequence[str]) -> None:
        """Lock these machines' rows, and those of the machines that have these addresses, before any is changed.

        All are locked in the one order that :meth:`touch` has too, so that of two daemons that change the same machines
        the second waits, and neither has a row that the other waits for. SQLite has one writer at a time anyway.
        """
        if not self._database.is_postgresql:
            return
        wanted = set(machine_ids)
        for part in parts(macs):
            wanted |= set(
                self._connection.execute(sa.select(_OWNED.machine_id).where(_OWNED.mac.in_(part))).scalars()
            )
        for part in parts(sorted(wanted)):
            query = sa.select(_MACHINE.machine_id).where(_MACHINE.machine_id.in_(part))
            query = query.order_by(_MACHINE.machine_id.collate("C"))  # as Python sorts
            # As an update locks: what others add meanwhile and refers to these rows needn't wait.
            self._connection.execute(query.with_for_update(key_share=True))

    def _write(self, new: Sequence[Machine], changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Add machines, and change others by id."""
        macs = [mac for machine in new for mac in machine.macs]
        macs += [mac for changed in changes.values() for mac in changed.get("macs", ())]
        self._lock(changes, macs)
        self._insert(new)
        self._update(changes)

    def _insert(self, machines: Sequence[Machine]) -> None:
        """Add machines; whoever had one of their addresses loses it."""
        if machines:
            fields = [name for name in Machine.__dataclass_fields__ if name != "macs"]
            rows = [_with_keys({name: getattr(machine, name) for name in fields}) for machine in machines]
            self._connection.execute(sa.insert(tables.machines), rows)
            self._own({machine.machine_id: machine.macs for machine in machines})

    def _update(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Change fields of machines, by id."""
        alike: dict[tuple[str, ...], builtins.list[dict[str, Any]]] = {}
        for machine_id, changed in changes.items():
            values = _with_keys({name: value for name, value in changed.items() if name != "macs"})
            if values:
                alike.setdefault(tuple(sorted(values)), []).append({"the_machine_id": machine_id, **values})
        update = sa.update(tables.machines).where(_MACHINE.machine_id == sa.bindparam("the_machine_id"))
        for rows in alike.values():
            self._connection.execute(update, rows)
        self._own({key: changed["macs"] for key, changed in changes.items() if "macs" in changed})

    def _own(self, macs: Mapping[str, Sequence[str]]) -> None:
        """Give machines, by id, these addresses and no others; whoever had one loses it, of two the last has it."""
        owned = {
            mac: {"mac": mac, "machine_id": machine_id, "order_index": i}
            for machine_id, own in macs.items()
            for i, mac in enumerate(own)
        }
        for part in parts(builtins.list(macs)):
            self._connection.execute(sa.delete(tables.machine_macs).where(_OWNED.machine_id.in_(part)))
        for part in parts(builtins.list(owned)):
            self._connection.execute(sa.delete(tables.machine_macs).where(_OWNED.mac.in_(part)))
        if owned:
            self._connection.execute(sa.insert(tables.machine_macs), builtins.list(owned.values()))

    def _free_macs(self, macs: Sequence[str], machine_id: str) -> tuple[str, ...]:
        wanted = tuple(dict.fromkeys(normal_mac(mac) for mac in macs))
        if len(wanted) > MACS_MAX:
            raise ConflictError(f"a machine has at most {MACS_MAX} hardware addresses")
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


def _with_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Columns' values, with what machines are found by."""
    keyed = dict(values)
    if "serial" in keyed:
        keyed["serial_key"] = identity_key(keyed["serial"])
    if "asset_tag" in keyed:
        keyed["asset_key"] = identity_key(keyed["asset_tag"])
    return keyed
