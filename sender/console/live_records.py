"""Answers of the API that are made of several records."""

from __future__ import annotations

import dataclasses

from sender.store.records.access import Token
from sender.store.records.casts import Cast, CastEvent, TimelinePoint
from sender.store.records.live import LiveCast, LiveMachine
from sender.store.records.machines import Room


@dataclasses.dataclass(frozen=True, slots=True)
class RoomNow:
    """``/rooms/ID/live``."""

    room: Room
    machines: tuple[LiveMachine, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class CastNow:
    """``/casts/ID/live``."""

    live: LiveCast
    machines: tuple[LiveMachine, ...]

    @property
    def cast(self) -> Cast:
        """Its record."""
        return self.live.cast


@dataclasses.dataclass(frozen=True, slots=True)
class CastUpdate:
    """The event ``cast`` of ``/events``; ``full``: it replaces everything before."""

    cast_id: str
    full: bool
    live: LiveCast
    machines: tuple[LiveMachine, ...]
    events: tuple[CastEvent, ...] = ()
    points: tuple[TimelinePoint, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class CreatedToken:
    """``/tokens``, once."""

    token: Token
    secret: str
