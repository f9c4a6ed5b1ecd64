"""The database rows of a running cast: its record and its machines' lines, written behind."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from sender.daemon.jobs.owner import Owner
from sender.store.records.casts import Cast, CastMachine
from sender.store.records.machine_states import (
    GIVEN_UP_STATES,
    NOT_JOINED_STATES,
    UNFINISHED_STATES,
    UNSUCCESSFUL_STATES,
    MachineState,
)
from sender.store.repositories.audit import Audit, new_entry_key
from sender.store.repositories.casts import Casts
from sender.store.write_behind import Recorder


class JobRecords:
    """The rows of one cast, current in memory and soon in the database. Not thread-safe: use it on the event loop.

    Attributes:
        cast: the record.
        machines: history lines by the receivers' names, those of earlier runs included.
        change_count: increases with each change.
    """

    def __init__(self, cast: Cast, machines: Iterable[CastMachine], recorder: Recorder, owner: Owner) -> None:
        """Start with the rows of earlier runs.

        Args:
            cast: the record, leased by ``owner``.
            machines: lines of earlier runs.
            recorder: writes the rows, without waiting.
            owner: name of this daemon's run; rows are written only while it holds the cast's lease.
        """
        self.cast = cast
        self.machines = {row.name: row for row in machines}
        self.change_count = 0
        self._recorder = recorder
        self._owner = owner
        self._states = Counter(row.state for row in self.machines.values())

    @property
    def given_up_count(self) -> int:
        """Return the number of machines that the cast no longer waits for."""
        return sum(self._states[state] for state in GIVEN_UP_STATES)

    def given_up_ids(self) -> set[str | None]:
        """Return the ids of the machines that the cast no longer waits for."""
        return {row.machine_id for row in self.machines.values() if row.state in GIVEN_UP_STATES}

    def machine_of(self, machine_id: str) -> CastMachine | None:
        """Return the line of a machine of the database, or None."""
        return next((row for row in self.machines.values() if row.machine_id == machine_id), None)

    def change(self, **fields: object) -> None:
        """Change the record and queue it for writing."""
        self.cast = dataclasses.replace(self.cast, **fields)  # type: ignore[arg-type]  # Cast's own fields
        self._count_machines()
        self.change_count += 1
        self._recorder.put(("cast", self.cast.cast_id, "casts.save"), Casts.save, self.cast)

    def set_progress(self, *, seconds: float, bytes_sent: int, progress: float | None = None) -> None:
        """Change the record's progress in memory; :meth:`save_progress` writes it."""
        self.cast = dataclasses.replace(
            self.cast,
            seconds=seconds,
            bytes_sent=bytes_sent,
            progress=self.cast.progress if progress is None else progress,
        )

    def save_progress(self) -> None:
        """Queue the record's progress for writing."""
        self._recorder.put(("cast", self.cast.cast_id, "casts.save_progress"), Casts.save_progress, self.cast)

    def put_machine(self, row: CastMachine) -> None:
        """Change a machine's line and queue it for writing."""
        known = self.machines.get(row.name)
        if known == row:
            return
        if known is not None:
            self._states[known.state] -= 1
        self._states[row.state] += 1
        self.machines[row.name] = row
        self.change_count += 1
        key = ("machine", self.cast.cast_id, row.name)
        self._recorder.put(key, Casts.put_machine, row, lease=str(self._owner))
        self._count_machines()

    def merge(self, row: CastMachine) -> CastMachine:
        """Return a line of this run's session, completed with the line of earlier runs."""
        earlier = self.machines.get(row.name)
        if earlier is None:
            return row
        joined_at = earlier.joined_at or row.joined_at
        seconds = row.seconds
        if joined_at is not None:  # in this run of the cast or in an earlier one
            seconds = ((row.ended_at or datetime.now(UTC)) - joined_at).total_seconds()
        return dataclasses.replace(
            row,
            machine_id=row.machine_id or earlier.machine_id,
            joined_at=joined_at,
            seconds=round(seconds, 3),
            rate_bytes_per_s=round(row.bytes_verified / max(seconds, 1e-3)),
        )

    def fail_unfinished(self, reason: str) -> None:
        """End the lines of machines that are still unfinished when the cast ends."""
        for row in list(self.machines.values()):
            if row.ended_at is None and row.state in UNFINISHED_STATES:
                error, ended_at = row.error or reason, datetime.now(UTC)
                self.put_machine(
                    dataclasses.replace(row, state=MachineState.FAILED, error=error, ended_at=ended_at)
                )

    def audit_end(self) -> None:
        """Queue the audit entry of the cast's end for writing."""
        cast, key = self.cast, new_entry_key()
        detail: dict[str, object] = {
            "image": cast.image_name,
            "room": cast.plan.room_id,
            "reason": cast.reason,
            "complete": cast.complete_count,
            "failed": cast.failed_count,
        }
        self._recorder.put(
            ("audit", key),
            Audit.add,
            f"daemon {self._owner.name}",
            f"cast.{cast.phase.value}",
            f"cast {cast.cast_id}",
            detail,
            entry_key=key,
            at=datetime.now(UTC),
        )

    def audit_refusal(self, address: str, reason: str, count: int) -> None:
        """Queue the audit entry of a refused join for writing."""
        key = new_entry_key()
        self._recorder.put(
            ("audit", key),
            Audit.add,
            f"a machine at {address}",
            "cast.join_refused",
            f"cast {self.cast.cast_id}",
            {"reason": reason, "count": count},
            entry_key=key,
            at=datetime.now(UTC),
        )

    def _count_machines(self) -> None:
        states = self._states
        self.cast = dataclasses.replace(
            self.cast,
            joined_count=states.total() - sum(states[state] for state in NOT_JOINED_STATES),
            complete_count=states[MachineState.COMPLETE],
            failed_count=sum(states[state] for state in UNSUCCESSFUL_STATES),
        )
