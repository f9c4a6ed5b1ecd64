"""Wakes: requests to wake machines by Wake-on-LAN, and what became of each machine."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from sender.store.records.api_schema import ClosedObject, OpenStrEnum


class WakeState(OpenStrEnum):
    """The state of a machine that is woken."""

    QUEUED = "queued"
    """A later wave calls it."""
    CALLED = "called"
    """Magic packets were sent; no sign of life yet."""
    WOKE = "woke"
    """It booted from the network, or its agent checked in, after the packets."""
    WAS_ON = "was_on"
    """An agent was active there before the packets."""
    SILENT = "silent"
    """No sign of life in time."""
    UNKNOWN_ADDRESS = "unknown_address"
    """No hardware address of it is known."""


WAKING_STATES = frozenset({WakeState.QUEUED, WakeState.CALLED})
AWAKE_STATES = frozenset({WakeState.WOKE, WakeState.WAS_ON})
ASLEEP_STATES = frozenset({WakeState.SILENT, WakeState.UNKNOWN_ADDRESS})


@dataclasses.dataclass(frozen=True, slots=True)
class WokenMachine(ClosedObject):
    """A machine that is woken.

    Attributes:
        wave: number of its wave, from 1; 0 without a hardware address.
        called_at: time of its first magic packet.
        awake_at: time of its first sign of life.
    """

    machine_id: str
    name: str
    state: WakeState
    wave: int
    called_at: datetime | None = None
    awake_at: datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Wake:
    """One request to wake machines.

    Attributes:
        room_id: room of the request; None for chosen machines.
        cast_id: cast that woke them; None for an operator's own request.
        created_by: name of the token, ``local``, or as :attr:`Cast.created_by`.
        wave_size: machines of a wave.
        pause_s: seconds from one wave to the next.
        interfaces: network interfaces that the last packets left by.
        problem: reason why packets couldn't be sent; empty without one.
        ended_at: time at which every machine was awake or given up; None before.
    """

    wake_id: str
    room_id: str | None
    cast_id: str | None
    created_at: datetime
    created_by: str
    wave_size: int
    pause_s: float
    machines: tuple[WokenMachine, ...]
    interfaces: tuple[str, ...] = ()
    problem: str = ""
    ended_at: datetime | None = None

    def names(self, states: frozenset[WakeState]) -> list[str]:
        """Return the names of the machines in these states."""
        return [machine.name for machine in self.machines if machine.state in states]
