"""Events of a receiver session: past-tense records that its shell takes with ``next_events()``."""

from __future__ import annotations

import dataclasses

from protocol.image.stored_manifest import StoredManifest
from protocol.model.cast_state import SessionOutcome
from protocol.receiving.block_assembly import AssembledBlock
from protocol.wire.messages import Announce


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
    """The sender ended the cast."""

    outcome: SessionOutcome
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
