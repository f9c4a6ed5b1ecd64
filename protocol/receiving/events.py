"""Events of a receiver session, which its shell takes with ``next_events()``."""

from __future__ import annotations

import dataclasses

from protocol.image.stored_manifest import StoredManifest
from protocol.model.cast_state import SessionOutcome
from protocol.receiving.block_assembly import AssembledBlock


@dataclasses.dataclass(frozen=True, slots=True)
class BlockAssembled:
    """Enough symbols of an image block have arrived: decode, check and write it, then release its buffer."""

    assembled: AssembledBlock


@dataclasses.dataclass(frozen=True, slots=True)
class BlockFetchDue:
    """Forged symbols have spoilt an image block too often: fetch it over the control API, ``cast_bytes`` long."""

    block: int
    cast_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class ManifestReceived:
    """The manifest arrived by multicast, and its digest is the image's id."""

    data: memoryview | StoredManifest


@dataclasses.dataclass(frozen=True, slots=True)
class ManifestRejected:
    """The manifest arrived by multicast with a wrong digest: fetch it over the control API."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastEnded:
    """The sender ended the cast."""

    outcome: SessionOutcome
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class SenderSilent:
    """The sender has been silent for ``silent_s`` seconds; more of these events may follow."""

    silent_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class NotServed:
    """The sender is heard, but for ``unserved_s`` seconds nothing that this receiver needs has arrived.

    Attributes:
        unserved_s: time for which the sender had the opportunity.
        no_data: no data arrives at all; otherwise data arrives, and the NACKs are lost.
    """

    unserved_s: float
    no_data: bool


@dataclasses.dataclass(frozen=True, slots=True)
class RestartSuspected:
    """An ANNOUNCE of this cast isn't from the joined run: the sender has restarted, or somebody forges.

    Ask the control API for the incarnation. The event comes at most once in ``RESTART_QUESTION_INTERVAL_S``.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Demoted:
    """This receiver is much slower than the group: its repairs wait for the tail of the cast."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reinstated:
    """This receiver's repairs no longer wait."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """This receiver is much slower than the group, and the cast continues without it."""


ReceiverEvent = (
    BlockAssembled
    | BlockFetchDue
    | ManifestReceived
    | ManifestRejected
    | CastEnded
    | SenderSilent
    | NotServed
    | RestartSuspected
    | Demoted
    | Reinstated
    | Dropped
)
