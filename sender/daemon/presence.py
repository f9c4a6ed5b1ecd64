"""Which machines are there: those whose agents have checked in lately."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from protocol.constants import CHECK_IN_WAIT_S_MAX
from protocol.control.check_in import AgentState, CheckIn
from protocol.errors import DatabaseError
from sender.store.records.machines import Machine

if TYPE_CHECKING:
    from sender.daemon.context import Services

ONLINE_S: Final = CHECK_IN_WAIT_S_MAX + 15.0
"""A machine is there for this long after its last word: a long poll, and a retry that was unlucky."""

_SAVE_INTERVAL_S: Final = 10.0
_MACHINES_MAX: Final = 20_000
"""Machines that are remembered at once; the database knows all, and this is ten times the largest site."""


@dataclasses.dataclass(slots=True)
class Attendance:
    """One machine's agent, as it spoke last.

    Attributes:
        polls: check-ins that wait for their answer now.
        heard_at: monotonic seconds.
    """

    machine: Machine
    check_in: CheckIn
    heard_at: float
    seen_at: datetime
    polls: int = 0

    @property
    def idle(self) -> bool:
        """Whether it waits for a cast."""
        return self.check_in.state is AgentState.IDLE


class Presence:
    """Who is there; used from the event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Know nobody yet."""
        self._clock = clock
        self._machines: dict[str, Attendance] = {}
        self._unsaved: dict[str, datetime] = {}

    def note(self, machine: Machine, check_in: CheckIn) -> Attendance:
        """A machine has said something."""
        now = datetime.now(UTC)
        attendance = self._machines.get(machine.machine_id)
        if attendance is None:
            self._forget_the_oldest()
            attendance = Attendance(machine, check_in, self._clock(), now)
            self._machines[machine.machine_id] = attendance
        attendance.machine = machine
        attendance.check_in = check_in
        attendance.heard_at = self._clock()
        attendance.seen_at = now
        self._unsaved[machine.machine_id] = now
        return attendance

    def of(self, machine_id: str) -> Attendance | None:
        """A machine that is there, or None."""
        attendance = self._machines.get(machine_id)
        return attendance if attendance is not None and self._is_online(attendance) else None

    def forget(self, machine_id: str) -> None:
        """The machine was removed."""
        self._machines.pop(machine_id, None)

    @property
    def online(self) -> list[Attendance]:
        """Everybody who is there."""
        return [attendance for attendance in self._machines.values() if self._is_online(attendance)]

    @property
    def online_count(self) -> int:
        """How many are there."""
        return len(self.online)

    def take_unsaved(self) -> dict[str, datetime]:
        """When whom was seen since the last call, for the database."""
        unsaved, self._unsaved = self._unsaved, {}
        return unsaved

    def _is_online(self, attendance: Attendance) -> bool:
        return attendance.polls > 0 or self._clock() - attendance.heard_at < ONLINE_S

    def _forget_the_oldest(self) -> None:
        if len(self._machines) >= _MACHINES_MAX:
            oldest = min(self._machines.values(), key=lambda attendance: attendance.heard_at)
            del self._machines[oldest.machine.machine_id]


async def save_presence(services: Services) -> None:
    """Tell the database now and then who was seen, until cancelled."""
    store, presence = services.store, services.presence
    while True:
        await asyncio.sleep(_SAVE_INTERVAL_S)
        unsaved = presence.take_unsaved()
        if unsaved:
            with contextlib.suppress(DatabaseError):  # seen again in half a minute
                await store.run(store.machines.touch, unsaved)
