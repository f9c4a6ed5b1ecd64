"""Rows of machines and their hardware addresses: reading, locking, inserting and updating them in bulk."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from sender.store.database import tables
from sender.store.machines.identity import chunks, identity_key
from sender.store.records.machines import EnrolmentState, Machine
from sender.store.repositories.audit import AuditedRepository

_MACHINE = tables.machines.c
_OWNED = tables.machine_macs.c


class MachineRows(AuditedRepository):
    """Base of :class:`Machines`: its rows, within a transaction."""

    def _get(self, machine_id: str) -> Machine | None:
        query = sa.select(tables.machines).where(_MACHINE.machine_id == machine_id)
        found = self._machines(self._connection.execute(query).mappings().all())
        return found[0] if found else None

    def _machines(self, rows: Sequence[Mapping[Any, Any]]) -> builtins.list[Machine]:
        """Return the records of ``rows``, with their hardware addresses."""
        macs: dict[str, builtins.list[str]] = {row["machine_id"]: [] for row in rows}
        for chunk in chunks(builtins.list(macs)):
            query = sa.select(_OWNED.machine_id, _OWNED.mac).where(_OWNED.machine_id.in_(chunk))
            for row in self._connection.execute(query.order_by(_OWNED.machine_id, _OWNED.order_index)):
                macs[row.machine_id].append(row.mac)
        columns = [name for name in Machine.__dataclass_fields__ if name not in ("macs", "enrolment")]
        return [
            Machine(
                macs=tuple(macs[row["machine_id"]]),
                enrolment=EnrolmentState(row["enrolment"]),
                **{name: row[name] for name in columns},
            )
            for row in rows
        ]

    def _lock(self, machine_ids: Iterable[str], macs: Sequence[str]) -> None:
        """Lock the rows of these machines, and of the machines with these addresses, before any row is changed.

        All rows are locked in one order, which :meth:`Machines.touch` has too. Of two daemons that change the same
        machines the second waits, and neither holds a row that the other waits for. SQLite has one writer at a time.
        """
        if not self._database.is_postgresql:
            return
        wanted = set(machine_ids)
        for chunk in chunks(macs):
            wanted |= set(
                self._connection.execute(sa.select(_OWNED.machine_id).where(_OWNED.mac.in_(chunk))).scalars()
            )
        for chunk in chunks(sorted(wanted)):
            query = sa.select(_MACHINE.machine_id).where(_MACHINE.machine_id.in_(chunk))
            query = query.order_by(_MACHINE.machine_id.collate("C"))  # Python's order
            # The lock of an update: inserted rows that refer to these don't wait.
            self._connection.execute(query.with_for_update(key_share=True))

    def _write(self, new: Sequence[Machine], changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the new machines, and change others by id."""
        macs = [mac for machine in new for mac in machine.macs]
        macs += [mac for changed in changes.values() for mac in changed.get("macs", ())]
        self._lock(changes, macs)
        self._insert(new)
        self._update(changes)

    def _insert(self, machines: Sequence[Machine]) -> None:
        """Add machines; their addresses are taken from other machines."""
        if machines:
            fields = [name for name in Machine.__dataclass_fields__ if name != "macs"]
            rows = [_with_keys({name: getattr(machine, name) for name in fields}) for machine in machines]
            self._connection.execute(sa.insert(tables.machines), rows)
            self._assign_macs({machine.machine_id: machine.macs for machine in machines})

    def _update(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Change fields of machines, by id; one statement per set of fields."""
        rows_by_fields: dict[tuple[str, ...], builtins.list[dict[str, Any]]] = {}
        for machine_id, changed in changes.items():
            values = _with_keys({name: value for name, value in changed.items() if name != "macs"})
            if values:
                row = {"the_machine_id": machine_id, **values}
                rows_by_fields.setdefault(tuple(sorted(values)), []).append(row)
        update = sa.update(tables.machines).where(_MACHINE.machine_id == sa.bindparam("the_machine_id"))
        for rows in rows_by_fields.values():
            self._connection.execute(update, rows)
        self._assign_macs({key: changed["macs"] for key, changed in changes.items() if "macs" in changed})

    def _assign_macs(self, macs: Mapping[str, Sequence[str]]) -> None:
        """Replace the addresses of machines, by id; an address moves from any other machine, and the last one wins."""
        owned = {
            mac: {"mac": mac, "machine_id": machine_id, "order_index": i}
            for machine_id, own in macs.items()
            for i, mac in enumerate(own)
        }
        for chunk in chunks(builtins.list(macs)):
            self._connection.execute(sa.delete(tables.machine_macs).where(_OWNED.machine_id.in_(chunk)))
        for chunk in chunks(builtins.list(owned)):
            self._connection.execute(sa.delete(tables.machine_macs).where(_OWNED.mac.in_(chunk)))
        if owned:
            self._connection.execute(sa.insert(tables.machine_macs), builtins.list(owned.values()))


def _with_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return column values with the keys by which machines are found."""
    keyed = dict(values)
    if "serial" in keyed:
        keyed["serial_key"] = identity_key(keyed["serial"])
    if "asset_tag" in keyed:
        keyed["asset_key"] = identity_key(keyed["asset_tag"])
    return keyed
