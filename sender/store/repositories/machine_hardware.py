"""Hardware of machines, as their agents last reported it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from protocol.control.hardware_record import HARDWARE
from protocol.errors import ProtocolError
from protocol.model.hardware import Hardware, search_text
from sender.store.database import tables
from sender.store.machines.identity import chunks
from sender.store.records.hardware import MachineHardware
from sender.store.repositories.transactions import Database, Repository, reading

_HARDWARE = tables.machine_hardware.c


def write_hardware(database: Database, hardware: Mapping[str, Hardware]) -> None:
    """Record the hardware of machines, by id, within a transaction."""
    now = database.now()
    for chunk in chunks(list(hardware)):
        rows = [
            {
                "machine_id": machine_id,
                "hardware": HARDWARE.encode(hardware[machine_id]),
                "search_text": search_text(hardware[machine_id]),
                "at": now,
            }
            for machine_id in chunk
        ]
        insert = database.insert(tables.machine_hardware)
        replaced = {name: insert.excluded[name] for name in ("hardware", "search_text", "at")}
        statement = insert.on_conflict_do_update(index_elements=["machine_id"], set_=replaced)
        database.connection.execute(statement, rows)


def matching_hardware(word: str) -> sa.Select[tuple[str]]:
    """Return a query of the ids of machines with a lower-case ``word`` in their hardware."""
    return sa.select(_HARDWARE.machine_id).where(_HARDWARE.search_text.contains(word, autoescape=True))


class HardwareRecords(Repository):
    """Repository of hardware; :meth:`Machines.record` writes it."""

    @reading
    def of_machines(self, machine_ids: Sequence[str]) -> dict[str, MachineHardware]:
        """Return the hardware of those of these machines that have reported it, by id."""
        found: dict[str, MachineHardware] = {}
        for chunk in chunks(list(dict.fromkeys(machine_ids))):
            query = sa.select(tables.machine_hardware).where(_HARDWARE.machine_id.in_(chunk))
            for row in self._connection.execute(query):
                with contextlib.suppress(ProtocolError):  # of another version: the agent reports it again
                    hardware = HARDWARE.decode_untrusted("hardware", row.hardware)
                    found[row.machine_id] = MachineHardware(row.machine_id, row.at, hardware)
        return found
