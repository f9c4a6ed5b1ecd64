"""States of a machine, in a cast and between casts, and named sets of them."""

from __future__ import annotations

from typing import Final

from sender.store.records.api_schema import OpenStrEnum


class MachineState(OpenStrEnum):
    """A machine's state: in a cast, or between casts."""

    OFFLINE = "offline"
    BOOTING = "booting"
    """Loading the live system over the network."""
    WAKING = "waking"
    """Being woken by Wake-on-LAN."""
    CAPTURING = "capturing"
    """Sending its disk to the daemon, which makes an image of it."""
    IDLE = "idle"
    """Waiting for a cast."""
    ASSIGNED = "assigned"
    """Assigned to a cast, but not joined yet."""
    ABSENT = "absent"
    """Assigned to a cast that has ended; it never joined."""
    JOINED = "joined"
    RECEIVING = "receiving"
    SLOW = "slow"
    """Receiving, and about to be demoted or dropped as a straggler."""
    TAIL = "tail"
    """Receiving as a demoted straggler, after the main group."""
    COMPLETE = "complete"
    """Every byte verified."""
    FAILED = "failed"
    LOST = "lost"
    """Silent for too long; it may come back."""
    DROPPED = "dropped"
    """Dropped from the cast as a straggler."""


NOT_JOINED_STATES: Final = frozenset({MachineState.ASSIGNED, MachineState.ABSENT})
CONNECTED_STATES: Final = frozenset({MachineState.JOINED, MachineState.RECEIVING})
UNFINISHED_STATES: Final = CONNECTED_STATES | {MachineState.ASSIGNED}
GIVEN_UP_STATES: Final = frozenset({MachineState.FAILED, MachineState.DROPPED})
"""The cast no longer waits for these machines."""
UNSUCCESSFUL_STATES: Final = GIVEN_UP_STATES | {MachineState.LOST}
"""Counted as failed in :attr:`Cast.failed_count`."""
FINAL_STATES: Final = GIVEN_UP_STATES | {MachineState.COMPLETE}
"""A machine in one of these isn't assigned to the same cast again; a lost one is."""
ACTIVE_STATES: Final = UNFINISHED_STATES | {
    MachineState.IDLE,
    MachineState.CAPTURING,
    MachineState.SLOW,
    MachineState.TAIL,
}
"""Shown as working or ready."""
