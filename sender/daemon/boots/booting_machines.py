"""Machines that load the live system now: shown as booting, and awaited by casts that wait for a whole room.

They are read from the boot tokens in the database, so that a cast also waits for machines that another daemon told to
boot.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from protocol.errors import DatabaseError
from sender.daemon.jobs.cast_job import CastJob
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.store.records.casts import CastPhase, CastPlan, StartMode
from sender.store.records.machine_states import CONNECTED_STATES, FINAL_STATES, MachineState
from sender.store.repositories.boots import BootingMachine
from sender.store.store import Store

_POLL_S: Final = 2.0


class BootingMachines:
    """The machines that load the live system. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, registry: CastRegistry) -> None:
        self._store = store
        self._registry = registry
        self._machines: list[BootingMachine] = []
        self._ids: frozenset[str] = frozenset()
        self._stale = asyncio.Event()

    @property
    def count(self) -> int:
        """The number of machines that load the live system."""
        return len(self._machines)

    def includes(self, machine_id: str) -> bool:
        """Return whether a machine loads the live system."""
        return machine_id in self._ids

    def look_again(self) -> None:
        """Read the machines again, after a decision."""
        self._stale.set()

    async def run(self) -> None:
        """Keep the list current, and tell casts, until cancelled."""
        while True:
            self._stale.clear()
            with contextlib.suppress(DatabaseError):  # the store shows that as a problem
                self._machines = await self._store.run(self._store.boots.booting)
                self._ids = frozenset(found.machine_id for found in self._machines if found.machine_id)
            for job in list(self._registry.jobs.values()):
                if job.cast.phase is CastPhase.GATHERING:
                    job.expect_more(self._expected(job))
                job.expect_loading(self._loading_count(job))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._stale.wait()

    def _expected(self, job: CastJob) -> int:
        """Return the number of machines that a cast must wait for, besides those that it was planned for."""
        plan = job.cast.plan
        if plan.wait_for is not None or plan.start is not StartMode.JOINED:
            return 0
        assigned = sum(
            row.state is MachineState.ASSIGNED and row.machine_id not in job.targets
            for row in job.records.machines.values()
        )
        return self._loading_count(job) + assigned

    def _loading_count(self, job: CastJob) -> int:
        """Return the number of machines of a cast's plan that load the live system and may still join."""
        plan = job.cast.plan
        return sum(_is_planned(plan, machine) and not _is_settled(job, machine) for machine in self._machines)


def _is_settled(job: CastJob, machine: BootingMachine) -> bool:
    """Return whether a machine has ended in a cast or is in it, and its boot loader has only asked again."""
    row = None if machine.machine_id is None else job.records.machine_of(machine.machine_id)
    return row is not None and row.state in CONNECTED_STATES | FINAL_STATES


def _is_planned(plan: CastPlan, machine: BootingMachine) -> bool:
    if plan.machine_ids:
        return machine.machine_id in plan.machine_ids
    return plan.room_id is not None and machine.room_id == plan.room_id
