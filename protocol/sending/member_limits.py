"""The share of one member in the work that poisoned blocks cause."""

from __future__ import annotations

import dataclasses

from protocol.constants import (
    BLOCK_FETCH_MEMBER_BURST_BYTES,
    BLOCK_FETCH_MEMBER_BYTES_PER_S,
    DIGESTS_MEMBER_BURST,
    DIGESTS_MEMBER_PER_S,
)
from protocol.shared.token_bucket import TokenBucket


@dataclasses.dataclass(slots=True)
class MemberLimits:
    """Limits of one member, since any member may lie about poisoned blocks."""

    digests: TokenBucket = dataclasses.field(
        default_factory=lambda: TokenBucket(per_s=DIGESTS_MEMBER_PER_S, burst=DIGESTS_MEMBER_BURST)
    )
    fetched_bytes: TokenBucket = dataclasses.field(
        default_factory=lambda: TokenBucket(
            per_s=BLOCK_FETCH_MEMBER_BYTES_PER_S, burst=BLOCK_FETCH_MEMBER_BURST_BYTES
        )
    )
