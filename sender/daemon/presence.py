"""Presence of machines: their agents have checked in recently."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from protocol.constants import CHECK_IN_WAIT_S_MAX
from protocol.control.check_in import AgentState, CheckIn
from protocol.errors import DatabaseError
from sender.store.machines.claims import LastHeard
from sender.store.records.machines import Machine
from sender.store.store import Store

ONLINE_S: Final = CHECK_IN_WAIT_S_MAX + 15.0
"""A machine counts as online for this long after its last check-in: a long poll and one failed retry."""
OVERDUE_S: Final = 10.0
"""Time after an answer by which the next check-in is overdue: twice the longest pause of an agent."""
_SAVE_INTERVAL_S: Final = 10.0
_MACHINES_MAX: Final = 20_000
"""Machines in memory: ten times the largest site. The database has them all."""


@dataclasses.dataclass(slots=True)
class MachinePresence:
    """A machine and the last check-in of its agent.

    Attributes:
        polls: check-ins that wait for their answer now.
        heard_at: monotonic seconds of the last check-in.
        seen_at: the same moment in UTC.
    """

    machine: Machine
    check_in: CheckIn
    heard_at: float
    seen_at: datetime
    polls: int = 0

    @property
    def idle(self) -> bool:
        """Return whether its agent waits for a cast."""
        return self.check_in.state is AgentState.IDLE


class Presence:
    """Machines that are online at this daemon. Not thread-safe: use it on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._machines: dict[str, MachinePresence] = {}
        self._unsaved: dict[str, datetime] = {}
        self._signs: dict[str, datetime] = {}

    def note(self, machine: Machine, check_in: CheckIn) -> MachinePresence:
        """Record a check-in of a machine."""
        now = datetime.now(UTC)
        found = self._machines.get(machine.machine_id)
        if found is None:
            self._forget_the_oldest()
            found = MachinePresence(machine, check_in, self._clock(), now)
            self._machines[machine.machine_id] = found
        found.machine = machine
        found.check_in = check_in
        found.heard_at = self._clock()
        found.seen_at = now
        self._unsaved[machine.machine_id] = now
        self.note_sign(machine.machine_id)
        return found

    def note_sign(self, machine_id: str) -> None:
        """Note a sign of life: a machine boots from the network, or its agent enrols or checks in."""
        self._signs.pop(machine_id, None)
        self._signs[machine_id] = datetime.now(UTC)
        if len(self._signs) > _MACHINES_MAX:
            del self._signs[next(iter(self._signs))]

    def last_sign(self, machine_id: str) -> datetime | None:
        """Return the time of a machine's last sign of life at this daemon."""
        return self._signs.get(machine_id)

    def of(self, machine_id: str) -> MachinePresence | None:
        """Return a machine that is online, or None."""
        found = self._machines.get(machine_id)
        return found if found is not None and self._is_online(found) else None

    def last_heard(self, machine_id: str) -> LastHeard | None:
        """Return a machine's last check-in here; only reads, so that other threads may call it."""
        found = self._machines.get(machine_id)
        if found is None:
            return None
        return LastHeard(found.seen_at, found.polls > 0 or self._clock() - found.heard_at < OVERDUE_S)

    def forget(self, machine_id: str) -> None:
        """Forget a machine that was removed, or whose agent exits."""
        self._machines.pop(machine_id, None)
        self._unsaved.pop(machine_id, None)

    @property
    def online(self) -> list[MachinePresence]:
        """Return the machines that are online."""
        return [found for found in self._machines.values() if self._is_online(found)]

    @property
    def online_count(self) -> int:
        """Return the number of machines that are online."""
        return len(self.online)

    def take_unsaved(self) -> dict[str, datetime]:
        """Return the times of the last check-ins since the last call, by machine id."""
        unsaved, self._unsaved = self._unsaved, {}
        return unsaved

    def _is_online(self, found: MachinePresence) -> bool:
        return found.polls > 0 or self._clock() - found.heard_at < ONLINE_S

    def _forget_the_oldest(self) -> None:
        if len(self._machines) >= _MACHINES_MAX:
            oldest = min(self._machines.values(), key=lambda found: found.heard_at)
            del self._machines[oldest.machine.machine_id]


async def save_presence(store: Store, presence: Presence) -> None:
    """Write the times of the last check-ins to the database periodically, until cancelled."""
    while True:
        await asyncio.sleep(_SAVE_INTERVAL_S)
        unsaved = presence.take_unsaved()
        if unsaved:
            with contextlib.suppress(DatabaseError):  # seen again in half a minute
                await store.run(store.machines.touch, unsaved)
