"""Answers to receivers whose blocks are poisoned by forged symbols: digests to the group, then the block over TLS.

Both cost the sender work that a member can cause by lying, so both are limited: per block, per member, and per cast.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import (
    BLOCK_FETCH_BURST_BYTES,
    BLOCK_FETCH_BYTES_PER_S,
    BLOCK_FETCH_MEMBER_BURST_BYTES,
    BLOCK_FETCH_MEMBER_BYTES_PER_S,
    DIGEST_SALT_BYTES,
    DIGESTS_BURST,
    DIGESTS_MEMBER_BURST,
    DIGESTS_MEMBER_PER_S,
    DIGESTS_PER_S,
)
from protocol.shared.token_bucket import TokenBucket
from protocol.trust.symbol_digests import SymbolDigests
from protocol.wire.messages import BlockDigests, CastObject

_BLOCK_INTERVAL_S: Final = 0.05
"""Least time between two digests of one block, or the group's round-trip time if that is longer: receivers report the
same block within that time of each other, and one answer serves them all."""

_PER_PLAN_MAX: Final = 4
"""Digests between two batches of symbols: a few milliseconds."""

_RECENT_MAX: Final = 4096
"""Blocks whose last digests are remembered: ten seconds at the limit of a cast."""

_PENDING_MAX: Final = 1024
"""Blocks that wait for their digests; receivers report others again."""

LoadBlock = Callable[[int, int], NDArray[np.uint8]]


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


@dataclasses.dataclass(slots=True)
class MemberLimits:
    """The share of one member in the work that poisoned blocks cause."""

    digests: TokenBucket = dataclasses.field(
        default_factory=lambda: TokenBucket(per_s=DIGESTS_MEMBER_PER_S, burst=DIGESTS_MEMBER_BURST)
    )
    fetched_bytes: TokenBucket = dataclasses.field(
        default_factory=lambda: TokenBucket(
            per_s=BLOCK_FETCH_MEMBER_BYTES_PER_S, burst=BLOCK_FETCH_MEMBER_BURST_BYTES
        )
    )


class PoisonedReports:
    """Reports of poisoned blocks, and the digests that answer them."""

    def __init__(self, secrets: Callable[[int], bytes]) -> None:
        """Start without reports; ``secrets`` returns unpredictable bytes, for the salts."""
        self._secrets = secrets
        self._pending: OrderedDict[tuple[CastObject, int], None] = OrderedDict()
        self._answered_at: OrderedDict[tuple[CastObject, int], float] = OrderedDict()
        self._digests = TokenBucket(per_s=DIGESTS_PER_S, burst=DIGESTS_BURST)
        self._fetched_bytes = TokenBucket(per_s=BLOCK_FETCH_BYTES_PER_S, burst=BLOCK_FETCH_BURST_BYTES)

    def report(
        self,
        limits: MemberLimits,
        object_index: CastObject,
        blocks: Iterable[int],
        *,
        grtt_s: float,
        now: float,
    ) -> None:
        """Take a member's report of poisoned blocks; blocks beyond its limits are ignored, since it reports again."""
        for block in blocks:
            key = (object_index, block)
            answered_at = self._answered_at.get(key)
            if key in self._pending or len(self._pending) >= _PENDING_MAX:
                continue
            if answered_at is not None and now - answered_at < max(_BLOCK_INTERVAL_S, grtt_s):
                continue
            if not limits.digests.take(now):
                return
            self._pending[key] = None

    def take_due(self, now: float) -> tuple[DigestRequest, ...]:
        """Return the next digests to compute, within the cast's limit."""
        due: list[DigestRequest] = []
        while self._pending and len(due) < _PER_PLAN_MAX and self._digests.take(now):
            (object_index, block), _ = self._pending.popitem(last=False)
            self._answered_at[object_index, block] = now
            self._answered_at.move_to_end((object_index, block))
            if len(self._answered_at) > _RECENT_MAX:
                self._answered_at.popitem(last=False)
            due.append(DigestRequest(object_index, block, self._secrets(DIGEST_SALT_BYTES)))
        return tuple(due)

    def withdraw(self) -> None:
        """Forget the pending reports: the cast has ended."""
        self._pending.clear()

    def allow_fetch(self, limits: MemberLimits, byte_count: int, now: float) -> bool:
        """Return whether a member may fetch a block of ``byte_count`` bytes now."""
        return limits.fetched_bytes.take(now, byte_count) and self._fetched_bytes.take(now, byte_count)
