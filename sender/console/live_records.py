"""Responses of the API that combine several records."""

from __future__ import annotations

import dataclasses

from sender.store.records.casts import CastEvent, TimelinePoint
from sender.store.records.live import LiveCast, LiveMachine


@dataclasses.dataclass(frozen=True, slots=True)
class LiveCastUpdate:
    """The event ``cast`` of ``/events``; with ``full`` it replaces all earlier ones."""

    cast_id: str
    full: bool
    live: LiveCast
    machines: tuple[LiveMachine, ...]
    events: tuple[CastEvent, ...] = ()
    points: tuple[TimelinePoint, ...] = ()
