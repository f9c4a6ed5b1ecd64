"""Machines: found by what they say of themselves, kept whether they are switched on or not."""

from __future__ import annotations

import builtins
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypedDict, Unpack

import sqlalchemy as sa

from protocol.errors import ConfigurationError
from sender.store import tables
from sender.store.audit import Audit, AuditNote
from sender.store.columns import clean_json, clean_text
from sender.store.errors import ConflictError
from sender.store.machine_identity import (
    MACS_MAX,
    Identity,
    find_machine,
    find_machines,
    identity_key,
    normal_mac,
    parts,
)
from sender.store.machine_import import read_rows
from sender.store.paging import read_page
from sender.store.records import ImportProblem, ImportResult, Machine
from sender.store.transactions import Database, Repository, reading, writing, writing_again

SEEN_AGAIN_S = 10.0
"""A check-in that brings nothing new is noted this often at most; :meth:`Machines.touch` does the rest, in one go."""
ROOM_MACHINES_MAX = 10_000
"""Machines of a room that are read at once; a cast takes 1024."""

_MACHINE = tables.machines.c
_OWNED = tables.machine_macs.c


class MachineChange(TypedDict, total=False):
    """What of a machine can be changed."""

    name: str
    room_id: str | None
    macs: tuple[str, ...]
    serial: str
    asset_tag: str
    position: str
    note: str


def new_machine_id() -> str:
    """An id that no other machine has."""
    return f"m{secrets.token_hex(6)}"


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
        values = {
            "name": machine.name,
            "room_id": machine.room_id,
            "serial": machine.serial,
            "asset_tag": machine.asset_tag,
            "position": machine.position,
            "note": machine.note,
        }
        self._connection.execute(
            sa.insert(tables.machines).values(
                machine_id=machine_id,
                **_with_keys(values),
                address=machine.address,
                agent_version=machine.agent_version,
                inventory=machine.inventory,
                created_at=machine.created_at,
                last_seen_at=machine.last_seen_at,
            )
        )
        self._own(machine_id, macs)
        self._audit.note(audit, "machine.create", f"machine {machine_id}", {**values, "macs": list(macs)})
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
        self, machine_id: str, *, audit: AuditNote | None = None, **fields: Unpack[MachineChange]
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
        self._update(machine_id, changed)
        was = {name: getattr(before, name) for name in changed}
        self._audit.note(audit, "machine.change", f"machine {machine_id}", {"from": was, "to": changed})
        return self._get(machine_id)

    @writing
    def remove(self, machine_id: str, *, audit: AuditNote | None = None) -> bool:
        """Forget a machine; what was cast to it stays in history. False if there is none."""
        before = self._get(machine_id)
        if before is None:
            return False
        self._connection.execute(sa.delete(tables.machine_macs).where(_OWNED.machine_id == machine_id))
        self._connection.execute(sa.delete(tables.machines).where(_MACHINE.machine_id == machine_id))
        detail = {"name": before.name, "room_id": before.room_id, "macs": builtins.list(before.macs)}
        self._audit.note(audit, "machine.remove", f"machine {machine_id}", detail)
        return True

    @reading
    def find(self, macs: Sequence[str], serial: str, asset_tag: str) -> Machine | None:
        """The machine that this is, as :func:`find_machine` decides; None for one that is new."""
        machine_id = find_machine(self._connection, _identity(_valid_macs(macs), serial, asset_tag))
        return None if machine_id is None else self._get(machine_id)

    @writing_again
    def enrol(
        self,
        *,
        macs: Sequence[str],
        serial: str,
        asset_tag: str,
        name: str,
        address: str,
        agent_version: str,
        inventory: Mapping[str, str],
        seen_at: datetime | None = None,
    ) -> Machine:
        """Find the machine that checks in, or add it without a room; note what it says of itself.

        Its name, room, position and note are the operator's: an agent only names a machine that is new.
        """
        seen_at = seen_at or self._now()
        mine = _valid_macs(macs)
        machine_id = find_machine(self._connection, _identity(mine, serial, asset_tag))
        told: dict[str, Any] = {
            "address": clean_text(address),
            "agent_version": clean_text(agent_version),
            "inventory": clean_json(dict(inventory)),
        }
        before = None if machine_id is None else self._get(machine_id)
        if machine_id is None or before is None:
            machine_id = new_machine_id()
            values = {
                **told,
                "name": name,
                "room_id": None,
                "serial": serial,
                "asset_tag": asset_tag,
                "position": "",
                "note": "",
            }
            self._connection.execute(
                sa.insert(tables.machines).values(
                    machine_id=machine_id, **_with_keys(values), created_at=seen_at, last_seen_at=seen_at
                )
            )
            self._own(machine_id, mine)
        else:
            if identity_key(serial):
                told["serial"] = clean_text(serial)
            if identity_key(asset_tag):
                told["asset_tag"] = clean_text(asset_tag)
            # What it has now first: an adapter that isn't plugged in any more is the first to be forgotten.
            told["macs"] = (*mine, *(mac for mac in before.macs if mac not in mine))[:MACS_MAX]
            if set(told["macs"]) == set(before.macs):
                del told["macs"]
            changed = {key: value for key, value in told.items() if getattr(before, key) != value}
            last = before.last_seen_at
            if changed or last is None or seen_at - last > timedelta(seconds=SEEN_AGAIN_S):
                self._update(machine_id, {**changed, "last_seen_at": seen_at})
        machine = self._get(machine_id)
        assert machine is not None
        return machine

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
        rows, problems = read_rows(text)
        by_name = {machine.name: machine for machine in self.of_room(room_id)}
        met: dict[str, int] = {}
        added: builtins.list[tuple[str, dict[str, Any], tuple[str, ...]]] = []
        changes: dict[str, dict[str, Any]] = {}
        unchanged_count = 0
        identities = [_identity(row.macs, row.serial, row.asset_tag) for row in rows]
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
                empty = dict.fromkeys(("name", "serial", "asset_tag", "position", "note"), "")
                added.append((new_machine_id(), {**empty, **values}, row.macs))
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
        now = self._now()
        if added:
            fixed = {
                "address": "",
                "agent_version": "",
                "inventory": {},
                "created_at": now,
                "last_seen_at": None,
            }
            self._connection.execute(
                sa.insert(tables.machines),
                [
                    {"machine_id": machine_id, **_with_keys(values), **fixed}
                    for machine_id, values, _ in added
                ],
            )
        for machine_id, changed in changes.items():
            self._update(machine_id, changed)
        owned = [
            {"mac": mac, "machine_id": machine_id, "order_index": i}
            for machine_id, _, macs in added
            for i, mac in enumerate(macs)
        ]
        for part in parts([mac for _, _, macs in added for mac in macs]):
            self._connection.execute(sa.delete(tables.machine_macs).where(_OWNED.mac.in_(part)))
        if owned:
            self._connection.execute(sa.insert(tables.machine_macs), owned)
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

    def _update(self, machine_id: str, changed: Mapping[str, Any]) -> None:
        values = _with_keys({name: value for name, value in changed.items() if name != "macs"})
        if values:
            self._connection.execute(
                sa.update(tables.machines).where(_MACHINE.machine_id == machine_id).values(**values)
            )
        if "macs" in changed:
            self._own(machine_id, changed["macs"])

    def _own(self, machine_id: str, macs: Sequence[str]) -> None:
        """Give a machine these addresses and no others; whoever had one of them loses it."""
        self._connection.execute(
            sa.delete(tables.machine_macs).where(
                sa.or_(_OWNED.machine_id == machine_id, _OWNED.mac.in_(builtins.list(macs)))
            )
        )
        if macs:
            self._connection.execute(
                sa.insert(tables.machine_macs),
                [{"mac": mac, "machine_id": machine_id, "order_index": i} for i, mac in enumerate(macs)],
            )

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


def _identity(macs: Sequence[str], serial: str, asset_tag: str) -> Identity:
    return Identity(macs, identity_key(serial), identity_key(asset_tag))


def _valid_macs(macs: Sequence[str]) -> tuple[str, ...]:
    """Those of an agent's addresses that can identify it."""
    valid: dict[str, None] = {}
    for mac in macs:
        try:
            valid[normal_mac(mac)] = None
        except ConfigurationError:
            continue
    return tuple(valid)[:MACS_MAX]
