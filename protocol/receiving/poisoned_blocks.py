"""Blocks whose symbols contradict their hash: kept until the sender's digests show the forged ones, then completed.

::

    assembled, wrong ──► waiting ── digests: drop the forged symbols ──► under assembly again: NACK the rest
                            │
                            └── three requests without success ──► fetching over the control API ──► assembled

A member of the group can forge symbols, and a block of 183 decodes wrongly if one of them is forged. Discarding all of
them would let a forger of 1 % of the symbols spoil the same blocks for ever.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.constants import POISONED_RECORDS_MAX, POISONED_ROUNDS_MAX
from protocol.receiving.block_assembly import AssembledBlock
from protocol.trust.symbol_digests import SymbolDigests

_Value = TypeVar("_Value")

_INTERVAL_GROWTH: Final = 4
"""A sender that limits its digests answers later, not never."""


@dataclasses.dataclass(slots=True)
class _Waiting:
    """A poisoned block that waits for digests, and the time of its next request."""

    assembled: AssembledBlock
    request_at: float
    request_count: int = 0


class PoisonedBlocks:
    """The poisoned blocks of one object, and what is known about them."""

    def __init__(self, held_max: int) -> None:
        """Hold at most ``held_max`` blocks."""
        self._held_max = held_max
        self._waiting: dict[int, _Waiting] = {}
        self._fetching: dict[int, AssembledBlock] = {}
        self._digests: OrderedDict[int, SymbolDigests] = OrderedDict()
        self._rounds: OrderedDict[int, int] = OrderedDict()

    @property
    def waiting_count(self) -> int:
        """Return the number of blocks that wait for digests."""
        return len(self._waiting)

    @property
    def held_count(self) -> int:
        """Return the number of blocks that hold a buffer."""
        return len(self._waiting) + len(self._fetching)

    def hold(self, assembled: AssembledBlock, now: float) -> bool:
        """Take a block to wait for digests; return False, and leave it, if too many are held."""
        if self.held_count >= self._held_max:
            return False
        self._waiting[assembled.block] = _Waiting(assembled, now)
        return True

    def known_digests(self, block: int) -> SymbolDigests | None:
        """Return the digests of a block if they arrived before, because of another receiver."""
        return self._digests.get(block)

    def remember(self, block: int, digests: SymbolDigests) -> None:
        """Remember the digests of a block, for receivers that find it poisoned later than others."""
        _put_bounded(self._digests, block, digests)

    def forget_digests(self, block: int) -> None:
        """Forget digests that don't explain why the block is wrong: a forger has found symbols that match them."""
        self._digests.pop(block, None)

    def take_waiting(self, block: int) -> AssembledBlock | None:
        """Return and release a block that waits for digests; None if it doesn't."""
        waiting = self._waiting.pop(block, None)
        if waiting is None:
            return None
        _put_bounded(self._rounds, block, self._rounds.get(block, 0) + 1)
        return waiting.assembled

    def take_due_requests(self, blocks_max: int, *, retry_s: float, now: float) -> list[int]:
        """Return the blocks whose digests to request now; each is due again later, less and less often."""
        due = []
        for block, waiting in self._waiting.items():
            if waiting.request_at > now or self._exhausted(block, waiting):
                continue
            waiting.request_at = now + retry_s * _INTERVAL_GROWTH**waiting.request_count
            waiting.request_count += 1
            due.append(block)
            if len(due) == blocks_max:
                break
        return due

    def start_fetches(self, now: float) -> list[AssembledBlock]:
        """Return the blocks to fetch from now on: digests were requested often enough."""
        exhausted = [
            block
            for block, waiting in self._waiting.items()
            if waiting.request_at <= now and self._exhausted(block, waiting)
        ]
        started = [self._waiting.pop(block).assembled for block in exhausted]
        for assembled in started:
            self._fetching[assembled.block] = assembled
            _put_bounded(self._rounds, assembled.block, POISONED_ROUNDS_MAX)  # the next time at once
        return started

    def take_fetched(self, block: int) -> AssembledBlock | None:
        """Return and release a block that was being fetched; None if it wasn't."""
        return self._fetching.pop(block, None)

    def take_all(self) -> list[AssembledBlock]:
        """Return and release all held blocks."""
        held = [waiting.assembled for waiting in self._waiting.values()] + list(self._fetching.values())
        self._waiting.clear()
        self._fetching.clear()
        return held

    def forget(self, blocks: NDArray[np.integer]) -> None:
        """Forget blocks that are verified."""
        if self._rounds or self._digests:
            for block in blocks.tolist():
                self._rounds.pop(block, None)
                self._digests.pop(block, None)

    def _exhausted(self, block: int, waiting: _Waiting) -> bool:
        return waiting.request_count + self._rounds.get(block, 0) >= POISONED_ROUNDS_MAX


def _put_bounded(records: OrderedDict[int, _Value], block: int, value: _Value) -> None:
    records[block] = value
    records.move_to_end(block)
    if len(records) > POISONED_RECORDS_MAX:
        records.popitem(last=False)
