"""Events of a sender session, which its shell takes with ``next_events()``."""

from __future__ import annotations

import dataclasses

from protocol.model.cast_state import SessionOutcome
from protocol.model.session_records import ReceiverId


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverJoined:
    """A receiver joined; ``rejoined`` if it continues its earlier record."""

    receiver_id: ReceiverId
    rejoined: bool


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverCompleted:
    """A receiver verified every byte."""

    receiver_id: ReceiverId


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverFailed:
    """A receiver ended with an error of its own."""

    receiver_id: ReceiverId
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverLost:
    """A receiver was silent for the receiver timeout."""

    receiver_id: ReceiverId


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverReturned:
    """A lost receiver has sent a datagram again."""

    receiver_id: ReceiverId


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverSlow:
    """A receiver's sustainable rate has fallen far below the group's: it no longer limits the group's."""

    receiver_id: ReceiverId
    rate_bytes_per_s: float
    group_rate_bytes_per_s: float
    cause: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverRecovered:
    """A slow receiver keeps up again."""

    receiver_id: ReceiverId


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverDemoted:
    """A receiver was slow for too long: it is finished after the others."""

    receiver_id: ReceiverId
    rate_bytes_per_s: float
    group_rate_bytes_per_s: float
    cause: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverDropped:
    """A receiver was slow for too long: the cast continues without it."""

    receiver_id: ReceiverId
    rate_bytes_per_s: float
    group_rate_bytes_per_s: float
    cause: str


@dataclasses.dataclass(frozen=True, slots=True)
class MainGroupFinished:
    """All receivers but the stragglers have ended, ``seconds`` after the first image data."""

    complete_count: int
    straggler_count: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class CastingStarted:
    """The room has gathered: image data starts."""


@dataclasses.dataclass(frozen=True, slots=True)
class GatheringTimedOut:
    """No receiver joined before the deadline; the cast has ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastFinished:
    """The cast has ended with ``outcome``: the ends of transmission follow."""

    outcome: SessionOutcome
    reason: str


SenderEvent = (
    ReceiverJoined
    | ReceiverCompleted
    | ReceiverFailed
    | ReceiverLost
    | ReceiverReturned
    | ReceiverSlow
    | ReceiverRecovered
    | ReceiverDemoted
    | ReceiverDropped
    | MainGroupFinished
    | CastingStarted
    | GatheringTimedOut
    | CastFinished
)
