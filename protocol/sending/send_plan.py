"""A plan of symbols to send: segments of consecutive symbols as one structured array."""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.sending.poisoned_reports import DigestRequest
from protocol.trust.group_keys import GroupKeys

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
