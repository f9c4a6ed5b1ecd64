"""Snapshots of casts and machines as they are now."""

from __future__ import annotations

import dataclasses

from sender.store.records.api_schema import ClosedObject
from sender.store.records.casts import Cast
from sender.store.records.machine_states import MachineState
from sender.store.records.machines import Room


@dataclasses.dataclass(frozen=True, slots=True)
class LiveMachine(ClosedObject):
    """A machine now: a tile of a room's grid, a row of a cast's table.

    Attributes:
        machine_id: None for an unknown machine that joined a cast.
        state: see :class:`MachineState`; of its last cast while that is shown.
        cast_id: its current cast, or its last one.
        eta_s: seconds until it is complete; None if unknown.
        customised: true if its disk has a machine patch besides the image.
    """

    machine_id: str | None
    name: str
    room_id: str | None
    position: str
    address: str
    online: bool
    state: MachineState
    cast_id: str | None
    progress: float
    rate_bytes_per_s: float
    loss: float
    bottleneck: str
    eta_s: float | None
    error: str
    customised: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class LiveCast:
    """A cast now: its record, and live values that only the daemon that runs the cast knows.

    Attributes:
        bottleneck: cause of the current rate, for people; empty if unknown here.
        eta_s: seconds until the main group is done; None if unknown.
        rate_bytes_per_s: target rate of the pacing.
        achieved_bytes_per_s: rate of sent bytes.
        local: true if this daemon runs the cast.
    """

    cast: Cast
    local: bool
    rate_bytes_per_s: float
    achieved_bytes_per_s: float
    elapsed_s: float
    eta_s: float | None
    pass_index: int
    pass_progress: float
    bottleneck: str


@dataclasses.dataclass(frozen=True, slots=True)
class RoomLive(ClosedObject):
    """A room and the current state of its machines."""

    room: Room
    machines: tuple[LiveMachine, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class CastLive(ClosedObject):
    """A cast and the current state of its machines."""

    live: LiveCast
    machines: tuple[LiveMachine, ...]
