"""Collecting the symbols of blocks: a bounded pool of buffers, copies by array, deficits.

A block of k source symbols is decodable from any k distinct symbols, so its buffer has exactly k slots. A source
symbol lives in the slot of its own number; a repair symbol waits in the slot of some source symbol that is still
missing and moves on if that one arrives after all.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from protocol.constants import ESI_NONE, SYMBOLS_MAX


@dataclasses.dataclass(slots=True)
class AssembledBlock:
    """A block under assembly, and once ``missing_count`` is zero, ready to be decoded.

    Attributes:
        object: the object of the cast.
        block: block number.
        k: source symbols of the block.
        stored_bytes: length of the block as stored; the last symbol is zero-padded beyond it.
        slots: ``uint8[k, symbol_bytes]``, a view of the pool.
        slot_esi: ``uint8[k]``: which encoding symbol each slot holds, ESI_NONE when empty.
        seen: ``bool[255]``: encoding symbols that are in a slot.
        buffer_index: place in the pool.
        missing_count: distinct symbols still needed: the deficit.
        nacked: whether this receiver asked for repair of it.
    """

    object: int
    block: int
    k: int
    stored_bytes: int
    slots: NDArray[np.uint8]
    slot_esi: NDArray[np.uint8]
    seen: NDArray[np.bool_]
    buffer_index: int
    missing_count: int
    nacked: bool = False

    @property
    def payload(self) -> NDArray[np.uint8]:
        """The stored bytes, once the slots are decoded: a contiguous ``uint8[stored_bytes]`` view."""
        return self.slots.reshape(-1)[: self.stored_bytes]

    @property
    def erasure_count(self) -> int:
        """Source symbols that aren't in their slot: what decoding has to solve for."""
        return int(np.count_nonzero(self.slot_esi >= self.k))

    def add(self, esi: NDArray[np.uint8], symbols: NDArray[np.uint8]) -> None:
        """Take encoding symbols of this block; duplicates and surplus are ignored.

        Args:
            esi: ``uint8[n]``, numbers of the symbols, n > 0.
            symbols: ``uint8[n, symbol_bytes]``, copied.
        """
        if not (esi[1:] > esi[:-1]).all():  # reordered or doubled
            esi, first = np.unique(esi, return_index=True)
            symbols = symbols[first]
        seen = self.seen[esi]
        if seen.any():
            esi, symbols = esi[~seen], symbols[~seen]
        source_count = int(np.searchsorted(esi, self.k))
        if source_count:
            self._add_source(esi[:source_count], symbols[:source_count])
        if source_count < esi.size and self.missing_count:
            self._add_repair(esi[source_count:], symbols[source_count:])

    def _add_source(self, esi: NDArray[np.uint8], symbols: NDArray[np.uint8]) -> None:
        esi = esi[: self.missing_count]
        if esi.size == 0:
            return
        occupied = self.slot_esi[esi] != ESI_NONE
        if occupied.any():
            self._move_occupants(esi[occupied], esi)
        start, stop = int(esi[0]), int(esi[-1]) + 1
        if stop - start == esi.size:
            self.slots[start:stop] = symbols[: esi.size]
        else:
            self.slots[esi] = symbols[: esi.size]
        self.slot_esi[esi] = esi
        self.seen[esi] = True
        self.missing_count -= esi.size

    def _move_occupants(self, slots: NDArray[np.uint8], arriving: NDArray[np.uint8]) -> None:
        """Repair symbols give way to arriving source symbols; there is an empty slot for each of them."""
        empty = np.setdiff1d(np.flatnonzero(self.slot_esi == ESI_NONE), arriving)[-slots.size :]
        self.slots[empty] = self.slots[slots]
        self.slot_esi[empty] = self.slot_esi[slots]

    def _add_repair(self, esi: NDArray[np.uint8], symbols: NDArray[np.uint8]) -> None:
        esi = esi[: self.missing_count]
        slots = np.flatnonzero(self.slot_esi == ESI_NONE)[-esi.size :]
        self.slots[slots] = symbols[: esi.size]
        self.slot_esi[slots] = esi
        self.seen[esi] = True
        self.missing_count -= esi.size


class BufferPool:
    """A fixed number of equal buffers; memory that was never used is never touched."""

    def __init__(self, *, pool_bytes: int, symbols_per_block_max: int, symbol_bytes: int) -> None:
        self._symbol_bytes = symbol_bytes
        buffer_bytes = symbols_per_block_max * symbol_bytes
        # Eight blocks are the least that keep reading, decoding and writing busy at once.
        self.capacity = max(8, pool_bytes // buffer_bytes)
        self._memory = np.empty((self.capacity, symbols_per_block_max, symbol_bytes), np.uint8)
        # Last in, first out: the resident set is what was in use at once, not what was ever used.
        self._free = list(range(self.capacity - 1, -1, -1))

    @property
    def size_bytes(self) -> int:
        """All buffers together."""
        return int(self._memory.nbytes)

    @property
    def fill(self) -> float:
        """Share of the buffers in use, 0..1."""
        return 1.0 - len(self._free) / self.capacity

    @property
    def free_count(self) -> int:
        """Buffers that aren't in use."""
        return len(self._free)

    def take(self, object_index: int, block: int, k: int, stored_bytes: int) -> AssembledBlock | None:
        """An empty block, or None when all buffers are in use."""
        if not self._free:
            return None
        index = self._free.pop()
        return AssembledBlock(
            object=object_index,
            block=block,
            k=k,
            stored_bytes=stored_bytes,
            slots=self._memory[index, :k],
            slot_esi=np.full(k, ESI_NONE, np.uint8),
            seen=np.zeros(SYMBOLS_MAX, np.bool_),
            buffer_index=index,
            missing_count=k,
        )

    def release(self, block: AssembledBlock) -> None:
        """Return a block's buffer; the block must not be used afterwards."""
        assert block.buffer_index not in self._free[-1:]
        self._free.append(block.buffer_index)
