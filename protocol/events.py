"""What the sessions tell their shells: past-tense records, taken with ``next_events()``."""

from __future__ import annotations

import dataclasses

from protocol.block_assembly import AssembledBlock
from protocol.session_records import ReceiverId
from protocol.stored_manifest import StoredManifest
from protocol.wire.messages import Announce

# -- receiver -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class BlockAssembled:
    """Enough symbols of an image block are there: decode, check and write it, then release its buffer."""

    assembled: AssembledBlock


@dataclasses.dataclass(frozen=True, slots=True)
class ManifestReceived:
    """The manifest came by multicast and its digest is the image's id."""

    data: memoryview | StoredManifest


@dataclasses.dataclass(frozen=True, slots=True)
class ManifestRejected:
    """The manifest came by multicast with a wrong digest: fetch it over the control API."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastEnded:
    """The sender ended the cast; ``outcome`` is one of END_COMPLETE, END_CANCELLED, END_FAILED."""

    outcome: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class SenderSilent:
    """Nothing was heard from the sender for ``silent_s`` seconds; more may follow."""

    silent_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class SenderRestarted:
    """The cast is announced by a new incarnation of its sender: join again with what is still needed."""

    announce: Announce


@dataclasses.dataclass(frozen=True, slots=True)
class Demoted:
    """This receiver is much slower than the group: its repairs wait for the tail of the cast."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reinstated:
    """This receiver's repairs no longer wait."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """This receiver is much slower than the group, and the cast goes on without it."""


ReceiverEvent = (
    BlockAssembled
    | ManifestReceived
    | ManifestRejected
    | CastEnded
    | SenderSilent
    | SenderRestarted
    | Demoted
    | Reinstated
    | Dropped
)

# -- sender ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverJoined:
    """A receiver joined; ``rejoined`` if it took its old place."""

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
    """Nothing was heard from a receiver for the receiver timeout."""

    receiver_id: ReceiverId


@dataclasses.dataclass(frozen=True, slots=True)
class ReceiverReturned:
    """A receiver that was lost is heard again."""

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
    """A receiver was slow for too long: the cast goes on without it."""

    receiver_id: ReceiverId
    rate_bytes_per_s: float
    group_rate_bytes_per_s: float
    cause: str


@dataclasses.dataclass(frozen=True, slots=True)
class MainGroupFinished:
    """Everybody but the stragglers has ended, ``seconds`` after image data began."""

    complete_count: int
    straggler_count: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class CastingStarted:
    """The room has gathered: image data begins."""


@dataclasses.dataclass(frozen=True, slots=True)
class GatheringTimedOut:
    """Nobody joined before the deadline; the cast has ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastFinished:
    """The cast has ended with ``outcome``: the ends of transmission follow."""

    outcome: int
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
