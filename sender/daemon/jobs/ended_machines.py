"""The machines that have ended in an unfinished cast: they aren't assigned to it again, and boot from their disks."""

from __future__ import annotations

import time
from typing import Final

from sender.daemon.jobs.cast_registry import CastRegistry
from sender.store.records.casts import Cast
from sender.store.records.machine_states import FINAL_STATES
from sender.store.store import Store

_ELSEWHERE_S: Final = 2.0
"""Age at which the lines of another daemon's cast are read again."""
_CASTS_MAX: Final = 256


class EndedMachines:
    """The ended machines of casts. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, registry: CastRegistry) -> None:
        self._store = store
        self._registry = registry
        self._elsewhere: dict[str, tuple[float, set[str]]] = {}

    async def has_ended(self, cast: Cast, machine_id: str) -> bool:
        """Return whether a machine already ended in this cast, successfully or not.

        Results of this daemon's agents are recorded before they are assigned a cast again.

        Raises:
            DatabaseError: the cast is another daemon's, and the database is unavailable.
        """
        job = self._registry.jobs.get(cast.cast_id)
        if job is not None:
            row = job.records.machine_of(machine_id)
            return row is not None and row.state in FINAL_STATES
        return machine_id in await self._ended_elsewhere(cast.cast_id)

    def forget(self, cast_id: str) -> None:
        """Read the machines of a cast again: a result was recorded."""
        self._elsewhere.pop(cast_id, None)

    async def _ended_elsewhere(self, cast_id: str) -> set[str]:
        """Return the machines that have ended in another daemon's cast, as of the last few seconds."""
        known = self._elsewhere.get(cast_id)
        if known is None or time.monotonic() - known[0] > _ELSEWHERE_S:
            rows = await self._store.run(self._store.casts.machines, cast_id)
            ended = {row.machine_id for row in rows if row.machine_id and row.state in FINAL_STATES}
            if len(self._elsewhere) >= _CASTS_MAX:
                self._elsewhere.clear()
            known = self._elsewhere[cast_id] = time.monotonic(), ended
        return known[1]
