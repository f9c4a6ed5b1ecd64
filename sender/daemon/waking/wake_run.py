"""A wake as a state machine: waves, repeated packets, signs of life, deadlines. Pure: time is an argument.

::

    queued ──its wave──► called ──sign of life──► woke
                            └──── 3 min ────────► silent

A machine whose agent is active at the start is ``was_on`` at once, and gets its packets all the same: its plug may have
been pulled seconds ago.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from sender.store.records.machines import Machine
from sender.store.records.wakes import WAKING_STATES, Wake, WakeState, WokenMachine

AWAKE_WITHIN_S: Final = 180.0
"""Time for power-on self-test, network boot and check-in; slow servers take two minutes."""
OUTAGE_AFTER_S: Final = 30.0
"""Time after which a wake that should have ended was abandoned: its last record takes seconds."""
REPEATS: Final = 3
REPEAT_INTERVAL_S: Final = 1.0
"""Each packet is sent three times, a second apart: broadcast datagrams are lost without a trace, and a card that is
just falling asleep misses one."""


@dataclasses.dataclass(frozen=True, slots=True)
class WavePace:
    """Size and distance of waves: machines that are switched on at once draw several times their usual current.

    Attributes:
        size: machines of a wave.
        pause_s: seconds from one wave to the next.
    """

    size: int
    pause_s: float

    def duration_s(self, machine_count: int) -> float:
        """Return the time from the first wave to the last one."""
        return max(0, math.ceil(machine_count / self.size) - 1) * self.pause_s


def split_waves(machines: Sequence[Machine], size: int) -> tuple[tuple[Machine, ...], ...]:
    """Return the waves, of at most ``size`` machines each.

    Neighbours in a row hang on one fuse, so they are dealt to different waves, like cards.
    """
    ordered = sorted(machines, key=lambda machine: (_natural(machine.position), _natural(machine.name)))
    count = math.ceil(len(ordered) / size)
    return tuple(tuple(ordered[first::count]) for first in range(count))


def _natural(text: str) -> list[tuple[int, str]]:
    pieces = re.split(r"(\d+)", text.casefold())
    return [(int(piece), "") if index % 2 else (0, piece) for index, piece in enumerate(pieces)]


def with_outage(wake: Wake, now: datetime) -> Wake:
    """Return a recorded wake; one whose time is over without an end gets the reason: its daemon was stopped."""
    waves = max((machine.wave for machine in wake.machines), default=0)
    over_at = wake.created_at + timedelta(seconds=waves * wake.pause_s + AWAKE_WITHIN_S + OUTAGE_AFTER_S)
    if wake.ended_at is not None or now < over_at:
        return wake
    return dataclasses.replace(
        wake,
        ended_at=over_at,
        problem="the daemon that woke these machines was stopped before their time was over",
    )


class WakeRun:
    """One wake. Feed it with :meth:`take_due`, :meth:`note_awake` and :meth:`expire`."""

    def __init__(self, wake: Wake, machines: Sequence[Machine], was_on: Collection[str], now: float) -> None:
        """Start with the first wave.

        Args:
            wake: the record, without machines.
            machines: the machines to wake; those without a hardware address can't be.
            was_on: ids of machines whose agents are active.
            now: monotonic seconds.
        """
        self._wake = wake
        self._macs: dict[str, tuple[str, ...]] = {}
        self._machines: dict[str, WokenMachine] = {}
        self._calls: list[tuple[float, tuple[str, ...]]] = []
        waves = split_waves([machine for machine in machines if machine.macs], wake.wave_size)
        for index, wave in enumerate(waves):
            ids = tuple(machine.machine_id for machine in wave)
            self._macs |= {machine.machine_id: machine.macs for machine in wave}
            for machine in wave:
                state = WakeState.WAS_ON if machine.machine_id in was_on else WakeState.QUEUED
                self._machines[machine.machine_id] = WokenMachine(
                    machine.machine_id, machine.name, state, index + 1
                )
            starts_at = now + index * wake.pause_s
            self._calls += [(starts_at + repeat * REPEAT_INTERVAL_S, ids) for repeat in range(REPEATS)]
        self._calls.sort(key=lambda call: call[0])
        for machine in machines:
            if not machine.macs:
                unknown = WokenMachine(machine.machine_id, machine.name, WakeState.UNKNOWN_ADDRESS, 0)
                self._machines[machine.machine_id] = unknown

    @property
    def record(self) -> Wake:
        """Return the record with the machines' states."""
        return dataclasses.replace(self._wake, machines=tuple(self._machines.values()))

    @property
    def ended(self) -> bool:
        """True if nothing is left to send or to wait for."""
        return self._wake.ended_at is not None

    def state_of(self, machine_id: str) -> WakeState | None:
        """Return the state of a machine; None if it isn't one of this wake."""
        machine = self._machines.get(machine_id)
        return None if machine is None else machine.state

    def called_ids(self) -> list[str]:
        """Return the machines that packets were sent to and that gave no sign of life."""
        return [key for key, machine in self._machines.items() if machine.state is WakeState.CALLED]

    def take_due(self, now: float, at: datetime) -> list[str]:
        """Return the hardware addresses to send a packet to now; packets to machines that are awake are left out.

        Args:
            now: monotonic seconds.
            at: the same moment, for the record.
        """
        macs: list[str] = []
        while self._calls and self._calls[0][0] <= now:
            for machine_id in self._calls.pop(0)[1]:
                machine = self._machines[machine_id]
                if machine.state is WakeState.WOKE:
                    continue
                macs += self._macs[machine_id]
                if machine.called_at is None:
                    state = WakeState.CALLED if machine.state is WakeState.QUEUED else machine.state
                    self._machines[machine_id] = dataclasses.replace(machine, state=state, called_at=at)
        return macs

    def note_sent(self, interfaces: tuple[str, ...], problem: str) -> None:
        """Note where packets left the daemon."""
        self._wake = dataclasses.replace(self._wake, interfaces=interfaces, problem=problem)

    def note_awake(self, seen: Mapping[str, datetime]) -> bool:
        """Note machines' last signs of life; return whether one of them has woken up."""
        changed = False
        for machine_id in self.called_ids():
            machine, seen_at = self._machines[machine_id], seen.get(machine_id)
            assert machine.called_at is not None
            if seen_at is not None and seen_at > machine.called_at:
                self._machines[machine_id] = dataclasses.replace(
                    machine, state=WakeState.WOKE, awake_at=seen_at
                )
                changed = True
        return changed

    def expire(self, at: datetime) -> None:
        """Give machines up whose time is over, and end the wake after the last one."""
        for machine_id in self.called_ids():
            machine = self._machines[machine_id]
            assert machine.called_at is not None
            if at - machine.called_at >= timedelta(seconds=AWAKE_WITHIN_S):
                self._machines[machine_id] = dataclasses.replace(machine, state=WakeState.SILENT)
        waiting = any(machine.state in WAKING_STATES for machine in self._machines.values())
        if not self._calls and not waiting and self._wake.ended_at is None:
            self._wake = dataclasses.replace(self._wake, ended_at=at)
