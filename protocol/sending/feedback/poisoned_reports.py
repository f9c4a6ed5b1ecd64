"""Answers to receivers whose blocks are poisoned by forged symbols: digests to the group, then the block over TLS.

Both cost the sender work that a member can cause by lying, so both are limited: per block, per member, and per cast.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from protocol.constants import (
    BLOCK_FETCH_BURST_BYTES,
    BLOCK_FETCH_BYTES_PER_S,
    DIGEST_SALT_BYTES,
    DIGESTS_BURST,
    DIGESTS_PER_S,
)
from protocol.errors import JoinRefusedError
from protocol.sending.member_limits import MemberLimits
from protocol.sending.transmission.cast_demand import CastDemand
from protocol.sending.transmission.send_plan import DigestRequest
from protocol.shared.token_bucket import TokenBucket
from protocol.wire.messages import CastObject, Poisoned

_BLOCK_INTERVAL_S: Final = 0.05
"""Least time between two digests of one block, or the group's round-trip time if that is longer: receivers report the
same block within that time of each other, and one answer serves them all."""

_PER_PLAN_MAX: Final = 4
"""Digests between two batches of symbols: a few milliseconds."""

_RECENT_MAX: Final = 4096
"""Blocks whose last digests are remembered: ten seconds at the limit of a cast."""

_PENDING_MAX: Final = 1024
"""Blocks that wait for their digests; receivers report others again."""


class PoisonedReports:
    """Reports of poisoned blocks, and the digests that answer them."""

    def __init__(self, demand: CastDemand, symbol_bytes: int, secrets: Callable[[int], bytes]) -> None:
        """Start without reports.

        Args:
            demand: knows the blocks of each object.
            symbol_bytes: length of a symbol.
            secrets: returns unpredictable bytes, for the salts.
        """
        self._demand = demand
        self._symbol_bytes = symbol_bytes
        self._secrets = secrets
        self._pending: OrderedDict[tuple[CastObject, int], None] = OrderedDict()
        self._answered_at: OrderedDict[tuple[CastObject, int], float] = OrderedDict()
        self._digests = TokenBucket(per_s=DIGESTS_PER_S, burst=DIGESTS_BURST)
        self._fetched_bytes = TokenBucket(per_s=BLOCK_FETCH_BYTES_PER_S, burst=BLOCK_FETCH_BURST_BYTES)

    def report(self, limits: MemberLimits, message: Poisoned, *, grtt_s: float, now: float) -> None:
        """Take a member's report of poisoned blocks; blocks beyond its limits are ignored, since it reports again."""
        demand = self._demand.for_object(message.object)
        for block in [block for (block,) in message.blocks if demand.stores(block)]:
            key = (message.object, block)
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

    def allow_fetch(self, limits: MemberLimits, block: int, now: float) -> bool:
        """Return whether a member may fetch an image block over the control API now.

        Raises:
            JoinRefusedError: the image has no such block.
        """
        image = self._demand.image
        if not image.stores(block):
            raise JoinRefusedError(f"the image stores no block {block}: fetch the manifest again")
        # By its symbols, a little more than its bytes.
        byte_count = image.source_count(block) * self._symbol_bytes
        return limits.fetched_bytes.take(now, byte_count) and self._fetched_bytes.take(now, byte_count)
