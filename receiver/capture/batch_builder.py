"""Packed spans collected into batches of an upload."""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import MIB
from protocol.control.capture_messages import (
    BATCH_BLOCKS_MAX,
    BATCH_STORED_BYTES_MAX,
    BATCH_STORED_MAX,
    BlockRows,
)
from protocol.packing.span_packer import PackedSpan

BATCH_BYTES: Final = 4 * MIB
"""Stored bytes from which a batch is sent: 36 ms of a gigabit link, against a few of an exchange. The agent holds five:
one that is collected, two whose rows are on the way, and the payload of two."""
BATCH_S: Final = 5.0
"""Longest time that a batch is collected: a slow level must not look like a dead agent."""

assert BATCH_BYTES + 4 * MIB <= BATCH_STORED_BYTES_MAX


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Rows, and the stored bytes of their blocks."""

    rows: BlockRows
    payload: list[bytes]

    def wanted_payload(self, wanted: NDArray[np.bool_]) -> list[bytes]:
        """Return the stored bytes of the blocks that ``bool[m]`` marks."""
        return [self.payload[index] for index in np.flatnonzero(wanted).tolist()]


class BatchBuilder:
    """A batch that grows; spans are added in order."""

    def __init__(self, now: float) -> None:
        self._started_at = now
        self._spans: list[PackedSpan] = []
        self._payload: list[bytes] = []
        self._block_count = 0
        self._stored_bytes = 0

    def fits(self, packed: PackedSpan) -> bool:
        """Return whether a span can be added within the limits of a batch."""
        return (
            self._block_count + packed.span.block_count <= BATCH_BLOCKS_MAX
            and len(self._payload) + len(packed.payload) <= BATCH_STORED_MAX
        )

    def add(self, packed: PackedSpan) -> None:
        """Add a span; its payload is copied, since its buffer is used again."""
        self._payload += [bytes(part) for part in packed.payload]
        self._stored_bytes += sum(len(part) for part in packed.payload)
        self._block_count += packed.span.block_count
        self._spans.append(dataclasses.replace(packed, payload=[], raw=memoryview(b"")))

    def is_due(self, now: float) -> bool:
        """Return whether the batch should be sent."""
        return self._stored_bytes >= BATCH_BYTES or now - self._started_at >= BATCH_S

    @property
    def is_empty(self) -> bool:
        """Return whether no span was added."""
        return not self._spans

    def build(self) -> Batch:
        """Return the batch, of at least one span."""
        spans = self._spans
        rows = BlockRows(
            spans[0].span.first_block,
            np.concatenate([packed.kind for packed in spans]),
            np.concatenate([packed.stored_bytes for packed in spans]),
            b"".join(packed.stored_hash for packed in spans),
            b"".join(packed.raw_hash for packed in spans),
        )
        return Batch(rows, self._payload)


def no_rows(first_block: int) -> BlockRows:
    """Return no rows, for a batch that only has the payload of an earlier one."""
    return BlockRows(first_block, np.empty(0, np.uint8), np.empty(0, np.uint32), b"", b"")
