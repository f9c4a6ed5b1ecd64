"""The messages of the wire, one annotated class each: the single source for codec, dtype, checks and documentation.

A SYMBOL datagram is a fixed 32-byte header and one encoding symbol (RFC 5740 NORM_DATA in spirit). All other
messages are a fixed 16-byte prefix, authentication, and a msgpack array of the fields in order:

* control, sender to group: prefix, 8-byte tag of the group, fields, 64-byte signature;
* feedback, receiver to sender: prefix, fields, 16-byte tag of the receiver.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, ClassVar, Final

from protocol.constants import (
    BLOCK_COUNT_MAX,
    DIGEST_SALT_BYTES,
    GRTT_MAX_S,
    GRTT_MIN_S,
    NACK_BLOCKS_MAX,
    NACK_RUNS_MAX,
    POISONED_BLOCKS_MAX,
    RECEIVER_COUNT_MAX,
    REPORT_INTERVAL_MAX_S,
    REPORT_INTERVAL_MIN_S,
    SOURCE_SYMBOLS_MAX,
    SYMBOL_BYTES_MAX,
    SYMBOL_BYTES_MIN,
    SYMBOL_DIGEST_BYTES,
    SYMBOLS_MAX,
    WIRE_MAGIC,
    WIRE_VERSION,
)
from protocol.model.bottleneck import Cause
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.schema.binary_fields import Bitmap, Field, Octets, Rows, Text, enumeration, message, uint


class CastObject(enum.IntEnum):
    """Object of a cast that a symbol belongs to."""

    MANIFEST = 0
    IMAGE = 1


FLAG_REPAIR = 0x01
"""Flag of a symbol that answers a NACK: it doesn't move the pass's frontier."""

# A sender's bounds on the timing of its receivers, the same in every message.
_GRTT_US: Final = uint(
    32, "group round-trip time, microseconds", low=int(GRTT_MIN_S * 1e6), high=int(GRTT_MAX_S * 1e6)
)
_REPORT_INTERVAL_MS: Final = uint(
    16,
    "time between two reports of one receiver",
    low=int(REPORT_INTERVAL_MIN_S * 1e3),
    high=int(REPORT_INTERVAL_MAX_S * 1e3),
)
_NEXT_SEQUENCE: Final = uint(
    64, "number of the next data datagram, extended to 64 bits: everything before it was sent", high=2**62
)
_RECEIVER_COUNT: Final = uint(16, "receivers that the cast still serves", high=RECEIVER_COUNT_MAX)


@message(0x00)
@dataclasses.dataclass(frozen=True, slots=True)
class ControlPrefix:
    """The first 16 bytes of a control datagram."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    magic: Annotated[int, uint(16, "0xD15C", low=WIRE_MAGIC, high=WIRE_MAGIC)]
    version: Annotated[int, uint(8, "wire version", low=WIRE_VERSION, high=WIRE_VERSION)]
    type: Annotated[int, uint(8, "message type")]
    cast_id: Annotated[int, uint(32, "the cast; the same after a restart of its sender")]
    counter: Annotated[
        int, uint(64, "rises with every control datagram of this run; others are dropped", low=1)
    ]


@message(0x00)
@dataclasses.dataclass(frozen=True, slots=True)
class FeedbackPrefix:
    """The first 16 bytes of a feedback datagram."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    magic: Annotated[int, uint(16, "0xD15C", low=WIRE_MAGIC, high=WIRE_MAGIC)]
    version: Annotated[int, uint(8, "wire version", low=WIRE_VERSION, high=WIRE_VERSION)]
    type: Annotated[int, uint(8, "message type")]
    cast_id: Annotated[int, uint(32, "the cast; the same after a restart of its sender")]
    receiver_id: Annotated[int, uint(16, "given at join", high=RECEIVER_COUNT_MAX - 1)]
    reserved: Annotated[int, uint(16, "0", high=0)]
    counter: Annotated[int, uint(32, "rises with every feedback datagram; repeated ones are dropped", low=1)]


@message(0x01)
@dataclasses.dataclass(frozen=True, slots=True)
class SymbolHeader:
    """SYMBOL: the 32-byte header of a data datagram; the symbol follows."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    magic: Annotated[int, uint(16, "0xD15C", low=WIRE_MAGIC, high=WIRE_MAGIC)]
    version: Annotated[int, uint(8, "wire version", low=WIRE_VERSION, high=WIRE_VERSION)]
    type: Annotated[int, uint(8, "0x01", low=1, high=1)]
    cast_id: Annotated[int, uint(32, "the cast")]
    tag: Annotated[
        int,
        uint(64, "first 8 bytes of AES-128 of the sequence number, extended to 128 bits, by the group's key"),
    ]
    sequence: Annotated[int, uint(32, "datagram number, modulo 2^32 (RFC 1982): counts loss")]
    object: Annotated[int, uint(8, "0 the manifest, 1 the image", high=1)]
    flags: Annotated[int, uint(8, "bit 0: repair, answers a NACK", high=1)]
    pass_index: Annotated[int, uint(8, "sweep over the demanded blocks, modulo 2^8")]
    lag: Annotated[
        int,
        uint(
            8, "blocks below block - lag are complete in this pass; more than 0 while blocks are interleaved"
        ),
    ]
    block: Annotated[int, uint(32, "block number within the object", high=BLOCK_COUNT_MAX - 1)]
    k: Annotated[int, uint(8, "source symbols of the block", low=1, high=SOURCE_SYMBOLS_MAX)]
    esi: Annotated[int, uint(8, "encoding symbol; esi >= k is repair", high=SYMBOLS_MAX - 1)]
    sent_at: Annotated[int, uint(16, "sender's clock at sending, in 100 microseconds, modulo 2^16")]


@message(0x10)
@dataclasses.dataclass(frozen=True, slots=True)
class Announce:
    """ANNOUNCE, sender to group, about once a second: how to find and join the cast."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    incarnation: Annotated[int, uint(32, "random for each start of the sender; a new one requests a rejoin")]
    state: Annotated[CastState, enumeration(8, CastState, "0 gathering, 1 casting, 2 ended")]
    image_id: Annotated[bytes, Octets(32, "BLAKE3 of the manifest")]
    image_name: Annotated[str, Text(64, "for people")]
    control_url: Annotated[str, Text(256, "base URL of the control API")]
    symbol_bytes: Annotated[int, uint(16, "symbol size", low=SYMBOL_BYTES_MIN, high=SYMBOL_BYTES_MAX)]
    raw_bytes: Annotated[int, uint(64, "size of the disk")]
    receiver_count: Annotated[int, _RECEIVER_COUNT]
    rate_bytes_per_s: Annotated[int, uint(64, "current rate")]
    next_sequence: Annotated[int, _NEXT_SEQUENCE]
    grtt_us: Annotated[int, _GRTT_US]
    report_interval_ms: Annotated[int, _REPORT_INTERVAL_MS]
    sent_at_us: Annotated[int, uint(64, "sender's monotonic clock, echoed by REPORT")]


@message(0x11)
@dataclasses.dataclass(frozen=True, slots=True)
class Flush:
    """FLUSH, sender to group: all demanded symbols were sent; receivers with missing blocks NACK now."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    object: Annotated[
        CastObject,
        enumeration(
            8, CastObject, "object of the pass; the image implies that the manifest was sent as well"
        ),
    ]
    pass_index: Annotated[int, uint(8, "the pass that ended")]
    next_sequence: Annotated[int, _NEXT_SEQUENCE]
    receiver_count: Annotated[int, _RECEIVER_COUNT]
    grtt_us: Annotated[int, _GRTT_US]
    report_interval_ms: Annotated[int, _REPORT_INTERVAL_MS]
    sent_at_us: Annotated[int, uint(64, "sender's monotonic clock, echoed by REPORT")]


@message(0x12)
@dataclasses.dataclass(frozen=True, slots=True)
class EndOfTransmission:
    """EOT, sender to group: the cast is over."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    outcome: Annotated[SessionOutcome, enumeration(8, SessionOutcome, "0 complete, 1 cancelled, 2 failed")]
    reason: Annotated[str, Text(512, "for people")]


@message(0x13)
@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """STANDING, sender to group, on a change and about once a second from then on: the receivers that are too slow."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    demoted: Annotated[
        bytes,
        Bitmap(
            RECEIVER_COUNT_MAX, "receivers whose repairs wait for the tail: keep received symbols, don't NACK"
        ),
    ]
    dropped: Annotated[bytes, Bitmap(RECEIVER_COUNT_MAX, "receivers that the cast continues without")]


@message(0x14)
@dataclasses.dataclass(frozen=True, slots=True)
class BlockDigests:
    """BLOCK_DIGESTS, sender to group, after a POISONED: separates the sender's symbols of a block from forged ones."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    object: Annotated[CastObject, enumeration(8, CastObject, "object")]
    block: Annotated[int, uint(32, "block number within the object", high=BLOCK_COUNT_MAX - 1)]
    salt: Annotated[bytes, Octets(DIGEST_SALT_BYTES, "key of the digests, drawn for this message")]
    digests: Annotated[
        bytes,
        Octets(
            SYMBOLS_MAX * SYMBOL_DIGEST_BYTES,
            "keyed BLAKE2b of each encoding symbol, four bytes each, by esi (RFC 7693)",
        ),
    ]


@message(0x20)
@dataclasses.dataclass(frozen=True, slots=True)
class Nack:
    """NACK, receiver to sender, unicast: the number of symbols that each block still needs."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    object: Annotated[CastObject, enumeration(8, CastObject, "object")]
    sequence: Annotated[
        int, uint(32, "next expected datagram number: repairs from this number on haven't arrived")
    ]
    deficits: Annotated[
        tuple[tuple[int, int, int], ...],
        Rows(
            (
                ("block", uint(32, "first block", high=BLOCK_COUNT_MAX - 1)),
                ("count", uint(32, "consecutive blocks", low=1, high=NACK_BLOCKS_MAX)),
                ("deficit", uint(8, "symbols missing in each", low=1, high=SOURCE_SYMBOLS_MAX)),
            ),
            NACK_RUNS_MAX,
            "runs of blocks with the same deficit",
            sum_column="count",
            sum_max=NACK_BLOCKS_MAX,
        ),
    ]


@message(0x22)
@dataclasses.dataclass(frozen=True, slots=True)
class Poisoned:
    """POISONED, receiver to sender, unicast: blocks that decode to bytes with a wrong hash; requests BLOCK_DIGESTS."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    object: Annotated[CastObject, enumeration(8, CastObject, "object")]
    blocks: Annotated[
        tuple[tuple[int], ...],
        Rows(
            (("block", uint(32, "block number", high=BLOCK_COUNT_MAX - 1)),),
            POISONED_BLOCKS_MAX,
            "poisoned blocks",
        ),
    ]


@message(0x21)
@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """REPORT, receiver to sender, unicast, periodic: progress, loss and bottleneck of the receiver."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]

    echo_us: Annotated[int, uint(64, "latest sent_at_us received; 0 for none")]
    echo_delay_us: Annotated[int, uint(32, "time between its arrival and this report")]
    expected_count: Annotated[int, uint(64, "datagrams sent since join, by their sequence numbers")]
    received_count: Annotated[int, uint(64, "datagrams received, since join")]
    loss_event_count: Annotated[int, uint(64, "runs of consecutive missing datagrams, since join")]
    recent_expected_count: Annotated[int, uint(32, "datagrams sent in the recent window (0.1 to 1 s)")]
    recent_received_count: Annotated[int, uint(32, "datagrams of that window that arrived")]
    arriving_bytes_per_s: Annotated[int, uint(64, "rate at which data arrives; 0 unknown")]
    queue_delay_us: Annotated[
        int,
        uint(32, "smallest delay of about the last 60 ms above the smallest ever measured, in microseconds"),
    ]
    socket_drop_count: Annotated[int, uint(64, "datagrams dropped at this socket, since join")]
    pool_drop_count: Annotated[int, uint(64, "symbols dropped for want of a buffer, since join")]
    fill_permille: Annotated[int, uint(16, "share of the buffers in use", high=1000)]
    buffer_bytes: Annotated[int, uint(64, "size of these buffers")]
    bottleneck: Annotated[int, uint(8, "0 network, 1 socket, 2 decode, 3 disk", high=3)]
    blocks_verified_count: Annotated[int, uint(32, "blocks read back and found correct")]
    blocks_needed_count: Annotated[int, uint(32, "blocks not yet verified")]
    bytes_written: Annotated[int, uint(64, "bytes written to the target")]
    nacks_sent_count: Annotated[int, uint(32, "NACK datagrams sent, since join")]
    parity_repaired_count: Annotated[int, uint(32, "blocks completed with repair symbols and without a NACK")]


BOTTLENECKS = (Cause.NETWORK, Cause.SOCKET, Cause.DECODE, Cause.DISK)
"""Bottlenecks that a receiver may report, by REPORT's number."""

CONTROL_MESSAGES: tuple[type, ...] = (Announce, Flush, EndOfTransmission, Standing, BlockDigests)
FEEDBACK_MESSAGES: tuple[type, ...] = (Nack, Report, Poisoned)
