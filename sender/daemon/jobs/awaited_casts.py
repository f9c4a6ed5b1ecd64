"""The cast that a machine should wait for: one that waits for it, or that starts soon."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.ended_machines import EndedMachines
from sender.store.records.casts import Cast, CastPhase
from sender.store.records.machines import Machine

PLANNED_AHEAD: Final = timedelta(minutes=15)
"""Time before the start of a planned cast from which its machines boot the live system and wait there."""


class AwaitedCasts:
    """The casts that machines should wait for. Not thread-safe: use it on the event loop.

    Boots and check-ins ask here, so that a machine which restarts because nothing is planned isn't told to boot the
    live system again.
    """

    def __init__(self, registry: CastRegistry, ended: EndedMachines) -> None:
        self._registry = registry
        self._ended = ended

    async def find(self, machine: Machine) -> Cast | None:
        """Return the oldest cast that waits for a machine, or starts soon, and hasn't ended on it.

        Raises:
            DatabaseError: the cast is another daemon's, and the database is unavailable.
        """
        soon = datetime.now(UTC) + PLANNED_AHEAD
        casts = [self._registry.latest(cast) for cast in self._registry.unfinished.values()]
        for cast in sorted(casts, key=lambda cast: cast.created_at):
            later = (
                cast.phase is CastPhase.PLANNED
                and cast.plan.start_at is not None
                and cast.plan.start_at > soon
            )
            if cast.phase.ended or later or not cast.plan.includes(machine):
                continue
            if not await self._ended.has_ended(cast, machine.machine_id):
                return cast
        return None
