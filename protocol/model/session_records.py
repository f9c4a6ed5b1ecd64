"""What sender and receiver agree on at join, and what they tell each other at the end: plain records."""

from __future__ import annotations

import dataclasses
import enum
from typing import NewType

import numpy as np
from numpy.typing import NDArray

CastId = NewType("CastId", int)
ReceiverId = NewType("ReceiverId", int)


@dataclasses.dataclass(frozen=True, slots=True)
class CastParameters:
    """All that is fixed for one run of a cast; every joined receiver holds the same."""

    cast_id: CastId
    incarnation: int
    session_token: int
    image_id: bytes
    image_name: str
    raw_bytes: int
    block_bytes: int
    manifest_bytes: int
    symbol_bytes: int
    group: str
    port: int
    sender_address: str
    feedback_port: int
    control_url: str

    @property
    def manifest_block_count(self) -> int:
        """Blocks of object 0: the manifest cut into pieces of ``block_bytes``."""
        return -(-self.manifest_bytes // self.block_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class MachineIdentity:
    """By what a list of machines may know one; what can't be read is empty.

    Attributes:
        macs: its network cards' hardware addresses, lower case with colons, that of the room's interface first.
        serial: the machine's, as its firmware says it.
        asset_tag: the owner's mark in the firmware.
    """

    macs: tuple[str, ...]
    serial: str
    asset_tag: str


@dataclasses.dataclass(frozen=True, slots=True)
class JoinRequest:
    """Who wants to join and what it lacks."""

    agent_id: str
    """Stable for one run of the agent: a rejoin with the same id takes the old place."""
    name: str
    """For people and metrics: the host name unless the operator said otherwise."""
    inventory: dict[str, str]
    has_manifest: bool
    need: NDArray[np.bool_] | None
    """``bool[block_count]`` of blocks still needed; None for all."""
    address: str
    identity: MachineIdentity | None = None
    """None if the agent doesn't say: those of earlier versions."""


@dataclasses.dataclass(frozen=True, slots=True)
class JoinGrant:
    """The sender's answer to a join."""

    parameters: CastParameters
    receiver_id: ReceiverId
    key: bytes
    """Authenticates this receiver's feedback datagrams and its completion report."""
    manifest_by_multicast: bool
    """True while the room gathers: object 0 is being cast. False: fetch it over HTTP."""
    report_interval_s: float
    grtt_s: float
    receiver_count: int


class ReceiverState(enum.StrEnum):
    """A receiver's life as the sender sees it."""

    JOINED = "joined"
    RECEIVING = "receiving"
    COMPLETE = "complete"
    FAILED = "failed"
    LOST = "lost"
    DROPPED = "dropped"

    @property
    def active(self) -> bool:
        """Whether the cast still works for this receiver."""
        return self in (ReceiverState.JOINED, ReceiverState.RECEIVING)

    @property
    def reclaimable(self) -> bool:
        """Return whether a new agent on the same machine takes over this receiver's record."""
        return self in (ReceiverState.LOST, ReceiverState.FAILED, ReceiverState.DROPPED)


@dataclasses.dataclass(frozen=True, slots=True)
class CompletionReport:
    """A receiver's account of itself at its end, sent over the control API."""

    success: bool
    error: str
    exit_code: int
    raw_bytes_verified: int
    raw_bytes_kept: int
    """What the target held already."""
    blocks_rewritten: int
    """Blocks that read back wrong and were written again."""
    bytes_received: int
    bytes_written: int
    datagrams_expected: int
    datagrams_received: int
    socket_drops: int
    blocks_repaired_by_parity: int
    blocks_repaired_by_nack: int
    nacks_sent: int
    seconds_receiving: float
    """From the first data datagram to the last block verified."""
    seconds_total: float
