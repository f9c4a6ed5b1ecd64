"""A plan to send: segments of consecutive symbols as one structured array, and digests to compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.trust.group_keys import GroupKeys
from protocol.trust.symbol_digests import SymbolDigests
from protocol.wire.messages import BlockDigests, CastObject

SEGMENT_DTYPE: Final = np.dtype(
    [
        ("object", "u1"),
        ("flags", "u1"),
        ("pass_index", "u1"),
        ("lag", "u1"),
        ("block", "u4"),
        ("k", "u1"),
        ("esi", "u1"),
        ("count", "u1"),
    ]
)
"""A segment: ``count`` encoding symbols of one block from ``esi`` on."""

LoadBlock = Callable[[int, int], NDArray[np.uint8]]
"""Function from ``(object, block)`` to the stored bytes, zero-padded: ``uint8[k, symbol_bytes]``."""


@dataclasses.dataclass(frozen=True, slots=True)
class DigestRequest:
    """A block whose digests to compute, with a fresh salt."""

    object: CastObject
    block: int
    salt: bytes

    def answer(self, load_block: LoadBlock) -> BlockDigests:
        """Compute the digests; ``load_block`` returns the source symbols of a block of an object."""
        digests = SymbolDigests.of(load_block(self.object, self.block), self.salt)
        return BlockDigests(object=self.object, block=self.block, salt=self.salt, digests=digests.digests)


@dataclasses.dataclass(frozen=True, slots=True)
class SendPlan:
    """A batch of symbols in sending order.

    Attributes:
        segments: structured array of :data:`SEGMENT_DTYPE`.
        first_sequence: sequence number of the first symbol, extended to 64 bits; the others follow.
        symbol_count: symbols of all segments together; may be 0 if there are requests.
        keys: keys of the run.
        digest_requests: blocks whose digests to compute and to pass to the session.
    """

    segments: NDArray[np.void]
    first_sequence: int
    symbol_count: int
    keys: GroupKeys
    digest_requests: tuple[DigestRequest, ...] = ()

    @property
    def next_sequence(self) -> int:
        """Return the extended sequence number after the last symbol."""
        return self.first_sequence + self.symbol_count
