"""Responses of the API that combine several records."""

from __future__ import annotations

import dataclasses

from sender.store.records.access import Token
from sender.store.records.casts import Cast, CastEvent, TimelinePoint
from sender.store.records.live import LiveCast, LiveMachine
from sender.store.records.machines import Room


@dataclasses.dataclass(frozen=True, slots=True)
class RoomNow:
    """The response of ``/rooms/ID/live``."""

    room: Room
    machines: tuple[LiveMachine, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class CastNow:
    """The response of ``/casts/ID/live``."""

    live: LiveCast
    machines: tuple[LiveMachine, ...]

    @property
    def cast(self) -> Cast:
        """The record of the cast."""
        return self.live.cast


@dataclasses.dataclass(frozen=True, slots=True)
class LiveCastUpdate:
    """The event ``cast`` of ``/events``; with ``full`` it replaces all earlier ones."""

    cast_id: str
    full: bool
    live: LiveCast
    machines: tuple[LiveMachine, ...]
    events: tuple[CastEvent, ...] = ()
    points: tuple[TimelinePoint, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class CreatedToken:
    """The response to the creation of a token, the only one with its secret."""

    token: Token
    secret: str
