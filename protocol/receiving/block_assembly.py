"""Collection of the symbols of blocks in a bounded pool of buffers.

A block of k source symbols decodes from any k distinct symbols, so its buffer has exactly k slots. A source symbol is
in the slot of its own number; a repair symbol waits in the slot of a missing source symbol, and moves to another slot
if that symbol arrives.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from protocol.constants import ESI_NONE, SYMBOLS_MAX
from protocol.fec.reed_solomon import encode_repair
from protocol.trust.symbol_digests import SymbolDigests


@dataclasses.dataclass(slots=True)
class AssembledBlock:
    """A block under assembly; ready to be decoded once ``missing_count`` is zero.

    Attributes:
        object: the object of the cast.
        block: block number.
        k: source symbols of the block.
        cast_bytes: length of the block as cast, with its tag if it is encrypted; the last symbol is zero-padded
            beyond it.
        slots: ``uint8[k, symbol_bytes]``, a view of the pool.
        slot_esi: ``uint8[k]``: the encoding symbol in each slot, ESI_NONE when empty.
        seen: ``bool[255]``: encoding symbols that are in a slot.
        buffer_index: index of the buffer in the pool.
        missing_count: distinct symbols still needed: the deficit.
        nacked: whether this receiver requested repair of the block.
        fetched: whether the control API served it, which nobody can forge.
        digests: the sender's digests of the block's symbols, if they were requested: others are dropped on arrival.
    """

    object: int
    block: int
    k: int
    cast_bytes: int
    slots: NDArray[np.uint8]
    slot_esi: NDArray[np.uint8]
    seen: NDArray[np.bool_]
    buffer_index: int
    missing_count: int
    nacked: bool = False
    fetched: bool = False
    digests: SymbolDigests | None = None

    @property
    def payload(self) -> NDArray[np.uint8]:
        """Return the block as cast once the slots are decoded: a contiguous ``uint8[cast_bytes]`` view."""
        return self.slots.reshape(-1)[: self.cast_bytes]

    @property
    def erasure_count(self) -> int:
        """Return the number of source symbols that aren't in their slot, which decoding has to recover."""
        return int(np.count_nonzero(self.slot_esi >= self.k))

    def add(self, esi: NDArray[np.uint8], symbols: NDArray[np.uint8]) -> None:
        """Add encoding symbols of this block; forgeries that its digests show, duplicates and surplus are ignored.

        Args:
            esi: ``uint8[n]``, numbers of the symbols, n > 0.
            symbols: ``uint8[n, symbol_bytes]``, copied.
        """
        if self.digests is not None:
            right = self.digests.match(esi, symbols)
            esi, symbols = esi[right], symbols[right]
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
        """Move repair symbols out of the slots of arriving source symbols; each has an empty slot to move to."""
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

    def restore_received(self) -> None:
        """Undo decoding: put the received repair symbols back into the slots of the missing source symbols.

        No copy was kept of them, but they are what the decoded block encodes to, even if some symbols were forged.
        """
        if self.erasure_count:
            return  # not decoded
        repair = np.flatnonzero(self.seen[self.k :]) + self.k
        missing = np.flatnonzero(~self.seen[: self.k])
        assert repair.size == missing.size
        if repair.size == 0:
            return
        first = int(repair[0])
        encoded = np.empty((int(repair[-1]) + 1 - first, self.slots.shape[1]), np.uint8)
        encode_repair(self.slots, first, encoded)
        self.slots[missing] = encoded[repair - first]
        self.slot_esi[missing] = repair

    def drop_forged(self, digests: SymbolDigests) -> int:
        """Empty the slots of symbols that aren't the sender's, and check later ones on arrival.

        Args:
            digests: the sender's digests of this block's symbols.

        Returns:
            The number of dropped symbols.
        """
        self.digests = digests
        used = np.flatnonzero(self.slot_esi != ESI_NONE)
        forged = used[~digests.match(self.slot_esi[used], self.slots[used])] if used.size else used
        self.seen[self.slot_esi[forged]] = False
        self.slot_esi[forged] = ESI_NONE
        self.missing_count += int(forged.size)
        return int(forged.size)

    def fill(self, cast_bytes: memoryview) -> None:
        """Replace all symbols by the block as cast, which came over the control API."""
        assert len(cast_bytes) == self.cast_bytes
        flat = self.slots.reshape(-1)
        flat[: self.cast_bytes] = np.frombuffer(cast_bytes, np.uint8)
        flat[self.cast_bytes :] = 0
        self.slot_esi[:] = np.arange(self.k)
        self.seen[:] = False
        self.seen[: self.k] = True
        self.missing_count = 0
        self.fetched = True


class BufferPool:
    """A fixed number of equal buffers; unused memory is never touched."""

    def __init__(self, *, pool_bytes: int, symbols_per_block_max: int, symbol_bytes: int) -> None:
        self._symbol_bytes = symbol_bytes
        buffer_bytes = symbols_per_block_max * symbol_bytes
        # Reading, decoding and writing at the same time need at least eight blocks.
        self.capacity = max(8, pool_bytes // buffer_bytes)
        self._memory = np.empty((self.capacity, symbols_per_block_max, symbol_bytes), np.uint8)
        # Last in, first out: the resident set is the largest number of buffers in use at the same time.
        self._free = list(range(self.capacity - 1, -1, -1))

    @property
    def size_bytes(self) -> int:
        """Return the size of all buffers."""
        return int(self._memory.nbytes)

    @property
    def fill(self) -> float:
        """Return the share of the buffers in use, 0..1."""
        return 1.0 - len(self._free) / self.capacity

    @property
    def free_count(self) -> int:
        """Return the number of free buffers."""
        return len(self._free)

    def take(self, object_index: int, block: int, k: int, cast_bytes: int) -> AssembledBlock | None:
        """Return an empty block, or None when all buffers are in use."""
        if not self._free:
            return None
        index = self._free.pop()
        return AssembledBlock(
            object=object_index,
            block=block,
            k=k,
            cast_bytes=cast_bytes,
            slots=self._memory[index, :k],
            slot_esi=np.full(k, ESI_NONE, np.uint8),
            seen=np.zeros(SYMBOLS_MAX, np.bool_),
            buffer_index=index,
            missing_count=k,
        )

    def release(self, block: AssembledBlock) -> None:
        """Release a block's buffer; the block must not be used afterwards."""
        assert block.buffer_index not in self._free[-1:]
        self._free.append(block.buffer_index)
