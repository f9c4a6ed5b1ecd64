"""Plain records that sender and receiver exchange when a receiver joins and when it completes."""

from __future__ import annotations

import dataclasses
import enum
from typing import NewType

import numpy as np
from numpy.typing import NDArray

from protocol.constants import BLOCK_TAG_BYTES

CastId = NewType("CastId", int)
ReceiverId = NewType("ReceiverId", int)


@dataclasses.dataclass(frozen=True, slots=True)
class CastParameters:
    """Parameters of one run of a cast, the same for every joined receiver."""

    cast_id: CastId
    incarnation: int
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
    encrypted: bool = False
    """True if every block is cast as AES-256-GCM ciphertext."""
    statement: str = ""
    """Signed statement about the image; empty for an unsigned one."""
    signature: str = ""
    """Signature of the statement, as minisign writes it."""
    signer: str = ""
    """Public key of the signer in one line: a hint, which counts only if a join code names it."""

    @property
    def manifest_block_count(self) -> int:
        """Return the blocks of object 0: the manifest cut into pieces of ``block_bytes``."""
        return -(-self.manifest_bytes // self.block_bytes)

    @property
    def tag_bytes(self) -> int:
        """Return the bytes that encryption adds to each stored block."""
        return BLOCK_TAG_BYTES if self.encrypted else 0

    @property
    def block_symbols_max(self) -> int:
        """Return the source symbols of a full block that is stored uncompressed."""
        return -(-(self.block_bytes + self.tag_bytes) // self.symbol_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class MachineIdentity:
    """Properties by which a list of machines recognises one; unreadable ones are empty.

    Attributes:
        macs: hardware addresses of the network cards, lower case with colons, the one of the room's interface first.
        serial: the machine's serial number from its firmware.
        asset_tag: the owner's asset tag from the firmware.
    """

    macs: tuple[str, ...]
    serial: str
    asset_tag: str


@dataclasses.dataclass(frozen=True, slots=True)
class JoinRequest:
    """A receiver's request to join a cast."""

    agent_id: str
    """Id of one run of the agent: a rejoin with the same id continues the receiver's record."""
    name: str
    """Name for people and metrics: the host name unless the operator set another."""
    inventory: dict[str, str]
    has_manifest: bool
    need: NDArray[np.bool_] | None
    """``bool[block_count]`` of blocks still needed; None for all."""
    address: str
    identity: MachineIdentity | None = None
    """None from agents of earlier versions."""
    machine_id: str | None = None
    """The machine that the request's ticket proves; never from the request itself. None without tickets."""


@dataclasses.dataclass(frozen=True, slots=True)
class JoinGrant:
    """The sender's answer to a join."""

    parameters: CastParameters
    receiver_id: ReceiverId
    key: bytes = dataclasses.field(repr=False)
    """Key that authenticates this receiver's feedback datagrams and its completion report."""
    run_secret: bytes = dataclasses.field(repr=False)
    """Secret of this run, from which the group's keys derive."""
    control_key: bytes
    """Public key of this run's control messages."""
    next_sequence: int
    """Extended number of the next data datagram; earlier ones are replays."""
    next_counter: int
    """Counter of the next control datagram; earlier ones are replays."""
    manifest_by_multicast: bool
    """True while the room gathers: object 0 is being cast. False: fetch the manifest over HTTP."""
    report_interval_s: float
    grtt_s: float
    receiver_count: int
    manifest_hashes: bytes = b""
    """Hashes of the manifest's blocks, if it is being cast and has few enough."""
    patch_id: bytes | None = None
    """The machine patch to fetch and to write with the image; None for the image alone."""


class ReceiverState(enum.StrEnum):
    """State of a receiver for the sender; :mod:`protocol.sending.transitions` has its transitions."""

    JOINED = "joined"
    RECEIVING = "receiving"
    COMPLETE = "complete"
    FAILED = "failed"
    LOST = "lost"
    DROPPED = "dropped"

    @property
    def active(self) -> bool:
        """Return whether the cast still serves this receiver."""
        return self in (ReceiverState.JOINED, ReceiverState.RECEIVING)

    @property
    def reclaimable(self) -> bool:
        """Return whether a new agent on the same machine takes over this receiver's record."""
        return self in (ReceiverState.LOST, ReceiverState.FAILED, ReceiverState.DROPPED)


@dataclasses.dataclass(frozen=True, slots=True)
class CompletionReport:
    """A receiver's summary of its own reception, sent over the control API when it ends."""

    success: bool
    error: str
    exit_code: int
    unsigned_allowed: bool
    """True if the image has no trusted signature, and this machine's options allow that."""
    raw_bytes_verified: int
    raw_bytes_kept: int
    """Bytes that the target already held."""
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
    """Time from the first data datagram to the last verified block."""
    seconds_total: float
    patch_id: bytes | None = None
    """The machine patch that is on the target with the image; None for the image alone."""
