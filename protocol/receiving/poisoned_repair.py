"""Repair of blocks that forged symbols have spoilt: digests from the sender, then the block over the control API.

The states of such a block are those of :mod:`~protocol.receiving.poisoned_blocks`.
"""

from __future__ import annotations

from protocol.constants import POISONED_BLOCKS_MAX
from protocol.receiving.block_assembly import AssembledBlock, BufferPool
from protocol.receiving.events import BlockFetchDue
from protocol.receiving.group_timing import GroupTiming
from protocol.receiving.object_reception import ObjectReception
from protocol.receiving.receiver_statistics import ReceiverStatistics
from protocol.trust.symbol_digests import SymbolDigests
from protocol.wire.messages import BlockDigests, Poisoned


class PoisonedRepair:
    """Repair of the poisoned blocks of all objects."""

    def __init__(self, pool: BufferPool, group: GroupTiming, statistics: ReceiverStatistics) -> None:
        self._pool = pool
        self._group = group
        self._statistics = statistics

    def note(self, reception: ObjectReception, assembled: AssembledBlock, now: float) -> None:
        """Keep a block that decodes to wrong bytes: the sender's digests tell its forged symbols."""
        self._statistics.blocks_rejected_count += 1
        reception.mark_poisoned(assembled, now)

    def discard(self, reception: ObjectReception, assembled: AssembledBlock) -> None:
        """Release the buffer of such a block: its turn comes in the tail, and until then it serves others."""
        self._statistics.blocks_rejected_count += 1
        self._pool.release(assembled)
        reception.mark_rejected(assembled.block)

    def receive_digests(self, reception: ObjectReception, message: BlockDigests, now: float) -> None:
        """Drop the forged symbols of a block, if the digests are of a block of this object."""
        if reception.object_index == message.object:
            digests = SymbolDigests(message.salt, message.digests)
            reception.receive_digests(message.block, digests, now)

    def requests(self, reception: ObjectReception, now: float) -> list[Poisoned]:
        """Return the request for the digests that are due in this round."""
        due = reception.take_due_digest_requests(POISONED_BLOCKS_MAX, retry_s=self._group.retry_s, now=now)
        if not due:
            return []
        return [Poisoned(object=reception.object_index, blocks=tuple((block,) for block in due))]

    def start_fetches(self, reception: ObjectReception, now: float) -> list[BlockFetchDue]:
        """Return the blocks to fetch over the control API: digests were requested often enough."""
        started = reception.start_fetches(now)
        return [BlockFetchDue(assembled.block, assembled.cast_bytes) for assembled in started]

    def take_fetched(
        self, reception: ObjectReception, block: int, cast_bytes: memoryview
    ) -> AssembledBlock | None:
        """Return a block with the bytes that the control API served; None if nothing waits for it."""
        assembled = reception.take_fetched(block)
        if assembled is not None:
            assembled.fill(cast_bytes)
            self._statistics.blocks_fetched_count += 1
        return assembled

    def give_up_fetch(self, reception: ObjectReception, block: int) -> None:
        """Request all of a block again: the control API refuses it."""
        assembled = reception.take_fetched(block)
        if assembled is not None:
            self._pool.release(assembled)
            reception.mark_rejected(block)
