"""The sender's demand for one object: blocks that the pass still has to send, and requested repairs.

No state is kept per receiver. A block is wanted whole until the pass has sent it; after that it costs nothing without a
NACK. Hence a late joiner costs one more partial pass, and a dead receiver costs nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from protocol.constants import INTERLEAVE_SYMBOLS, SYMBOLS_MAX
from protocol.sending.transmission.send_plan import SEGMENT_DTYPE
from protocol.shared.block_masks import WINDOW_BLOCKS, windows
from protocol.shared.sequence import sequence_difference
from protocol.wire.messages import FLAG_REPAIR, CastObject

_MOSTLY_LOST = 0.75
_AGAIN_FACTOR = 2
_AGAIN_SYMBOLS_MIN = 16
"""When all symbols of a block have been sent, the sender doesn't know which of them are missing, and sends more."""

_LAG_MAX = 255
"""Largest distance of interleaved blocks: the header's field has one octet."""


class SegmentList:
    """Segments of one plan, collected as tuples and converted into an array once."""

    def __init__(self, symbols_max: int) -> None:
        self.room = symbols_max
        self._rows: list[tuple[int, int, int, int, int, int, int, int]] = []

    def add(
        self,
        object_index: int,
        flags: int,
        pass_index: int,
        block: int,
        k: int,
        esi: int,
        count: int,
        *,
        lag: int = 0,
    ) -> None:
        """Append ``count`` symbols of a block."""
        assert 0 < count <= self.room
        assert esi + count <= SYMBOLS_MAX
        self.room -= count
        self._rows.append((object_index, flags, pass_index & 0xFF, lag, block, k, esi, count))

    def array(self) -> NDArray[np.void]:
        """Return the segments as an array of SEGMENT_DTYPE."""
        return np.array(self._rows, SEGMENT_DTYPE)


@dataclasses.dataclass(slots=True)
class _SweptBlock:
    """A block that the pass is sending."""

    block: int
    k: int
    esi: int
    stop_esi: int


@dataclasses.dataclass(frozen=True, slots=True)
class Nacked:
    """The accepted part of a NACK.

    Attributes:
        block_count: accepted blocks.
        symbol_count: symbols that they miss.
        added_count: those of them that no earlier NACK had requested.
    """

    block_count: int
    symbol_count: int
    added_count: int


class Demand:
    """The receivers' demand for one object.

    Attributes:
        wanted_count: blocks that the current or the next pass has to send whole.
        pass_index: number of the current pass.
        repair_block_count: blocks with repairs outstanding.
        sent_source_count: source symbols planned in passes.
        sent_parity_count: proactive repair symbols planned in passes.
        sent_repair_count: symbols planned in answer to NACKs.
    """

    def __init__(self, object_index: CastObject, source_symbols: NDArray[np.uint8]) -> None:
        """Start with nothing wanted.

        Args:
            object_index: the object of the cast.
            source_symbols: ``uint8[block_count]``, k of each block; 0 where nothing is stored.
        """
        count = source_symbols.shape[0]
        self.object_index = object_index
        self._k = source_symbols
        self._wanted = np.zeros(count, np.bool_)
        self._deficit = np.zeros(count, np.uint8)
        self._next_esi = np.zeros(count, np.uint8)
        # Number after the block's last planned symbol: NACKs from before its arrival are stale.
        self._last_sequence = np.zeros(count, np.uint32)
        self._next_sequence = 0  # of the next planned symbol, of this object or another
        self._ever_sent = np.zeros(count, np.bool_)
        self._whole_again = np.zeros(count, np.bool_)
        self._repairs: OrderedDict[int, None] = OrderedDict()
        self._cursor = 0
        # Blocks that are being sent, ascending; the one whose turn it is, and the symbols left of its turn.
        self._swept: list[_SweptBlock] = []
        self._turn = 0
        self._stripe_left = 0
        self.wanted_count = 0
        self.pass_index = 0
        self.repair_block_count = 0
        self.sent_source_count = 0
        self.sent_parity_count = 0
        self.sent_repair_count = 0

    @property
    def block_count(self) -> int:
        """Return the blocks of the object."""
        return int(self._k.shape[0])

    def stores(self, block: int) -> bool:
        """Return whether the object has this block, with something stored."""
        return 0 <= block < self.block_count and bool(self._k[block])

    def source_count(self, block: int) -> int:
        """Return k of a block."""
        return int(self._k[block])

    @property
    def idle(self) -> bool:
        """Return whether all demand has been planned."""
        return self.wanted_count == 0 and self.repair_block_count == 0 and not self._swept

    @property
    def progress(self) -> float:
        """Return the progress of the current pass, 0..1."""
        return self._cursor / max(1, self.block_count)

    def want(self, need: NDArray[np.bool_] | None, heard_sequence: int | None = None) -> None:
        """Add blocks for passes to send.

        Args:
            need: ``bool[block_count]``; None for all.
            heard_sequence: blocks sent after this number are on their way to the receiver already and are left out; it
                NACKs the ones that it loses. None for a receiver that has received nothing.
        """
        on_their_way = [] if heard_sequence is None else [swept.block for swept in self._swept]
        wanted_before = self._wanted[on_their_way]
        for rows in windows(self.block_count):
            mask = self._k[rows] > 0
            if need is not None:
                mask &= need[rows]
            if heard_sequence is not None and mask.any():
                mask &= ~self._is_later(rows, heard_sequence)
            self._wanted[rows] |= mask
        self._wanted[on_their_way] = wanted_before
        self.wanted_count = int(np.count_nonzero(self._wanted))

    def withdraw(self) -> None:
        """Remove all demand: no receiver needs anything any more."""
        self._wanted[:] = False
        self._deficit[:] = 0
        self._repairs.clear()
        self.wanted_count = 0
        self.repair_block_count = 0
        self._swept.clear()

    def nack(
        self, runs: Sequence[tuple[int, int, int]], sequence: int, symbols_max: float = math.inf
    ) -> Nacked:
        """Merge the runs of a NACK: blocks ``block .. block + count`` each miss ``deficit`` symbols.

        Blocks that a pass still has to send, and NACKs from before the arrival of the block's latest symbols, are
        ignored: the symbols are already on their way. Takes a millisecond for the most blocks that a NACK may name.

        Args:
            runs: ``(block, count, deficit)``.
            sequence: number up to which the receiver has heard symbols.
            symbols_max: most symbols that this NACK may add to the repairs; the first blocks are taken.
        """
        blocks, deficits = _blocks_of(runs, self.block_count)
        k = self._k[blocks]
        accepted = (k > 0) & ~self._wanted[blocks] & ~self._is_later(blocks, sequence)
        for swept in self._swept:
            accepted &= blocks != swept.block
        blocks = blocks[accepted]
        deficits = np.minimum(deficits[accepted], k[accepted])
        present = self._deficit[blocks]
        added = np.maximum(deficits - present, 0)
        if added.sum() > symbols_max:
            within = np.cumsum(added) <= symbols_max
            blocks, deficits, present, added = (
                blocks[within],
                deficits[within],
                present[within],
                added[within],
            )
        self._deficit[blocks] = np.maximum(deficits, present)
        new = blocks[present == 0].tolist()
        self._repairs.update(dict.fromkeys(new))
        self.repair_block_count += len(new)
        return Nacked(int(blocks.size), int(deficits.sum()), int(added.sum()))

    def _is_later(self, blocks: slice | NDArray[np.int64], sequence: int) -> NDArray[np.bool_]:
        """Return the blocks with symbols planned after ``sequence``.

        Compared by age, since more than half of all numbers can lie between them: with 1440 bytes each, those of an
        image of 3 TB. A receiver that has received everything is thus never mistaken for one that hasn't.
        """
        written_before = max(0, sequence_difference(self._next_sequence, sequence))
        sent_before = np.uint32(self._next_sequence) - self._last_sequence[blocks]
        later: NDArray[np.bool_] = self._ever_sent[blocks] & (sent_before < written_before)
        return later

    def plan_repairs(self, segments: SegmentList, sequence: int, loss: float) -> int:
        """Answer NACKs with symbols that were never sent before, a few more than were lost.

        Args:
            segments: the plan, added to.
            sequence: sequence number of the next symbol.
            loss: share of the group's datagrams that get lost, repairs included.

        Returns:
            The sequence number after the added symbols.
        """
        while self._repairs and segments.room:
            block = next(iter(self._repairs))
            k = int(self._k[block])
            deficit = int(self._deficit[block])
            wanted = min(deficit + math.ceil(deficit * loss), SYMBOLS_MAX)
            esi = int(self._next_esi[block])
            if deficit > _MOSTLY_LOST * k and deficit > SYMBOLS_MAX - esi:
                # A receiver with almost nothing of it gets the block itself, which needs no decoding.
                esi = 0
                self._whole_again[block] = True
            elif esi < k and not self._whole_again[block]:
                # All n symbols were sent, and the receiver has most of those that are sent again.
                wanted = max(_AGAIN_FACTOR * wanted, _AGAIN_SYMBOLS_MIN)
            count = min(wanted, SYMBOLS_MAX - esi, segments.room)
            segments.add(self.object_index, FLAG_REPAIR, self.pass_index, block, k, esi, count)
            sequence = (sequence + count) & 0xFFFFFFFF
            self.sent_repair_count += count
            self._next_esi[block] = (esi + count) % SYMBOLS_MAX
            self._last_sequence[block] = sequence
            if count < deficit:
                self._deficit[block] = deficit - count
                continue
            self._deficit[block] = 0
            self._whole_again[block] = False
            self._repairs.popitem(last=False)
            self.repair_block_count -= 1
        self._next_sequence = sequence
        return sequence

    def plan_pass(
        self, segments: SegmentList, sequence: int, parity: Callable[[int], int], depth: int = 1
    ) -> int:
        """Continue the ascending pass over the wanted blocks.

        Args:
            segments: the plan, added to.
            sequence: sequence number of the next symbol.
            parity: source symbols of a block to proactive repair symbols for it.
            depth: blocks to send together in stripes, which spreads a burst of losses over them; 1 for one after the
                other.

        Returns:
            The sequence number after the added symbols.
        """
        while segments.room:
            if not self._swept and not self._start_blocks(parity, depth):
                break
            swept = self._swept[self._turn]
            lag = swept.block - self._swept[0].block
            count = min(swept.stop_esi - swept.esi, self._stripe_left, segments.room)
            segments.add(
                self.object_index, 0, self.pass_index, swept.block, swept.k, swept.esi, count, lag=lag
            )
            sequence = (sequence + count) & 0xFFFFFFFF
            source_count = max(0, min(swept.k - swept.esi, count))
            self.sent_source_count += source_count
            self.sent_parity_count += count - source_count
            swept.esi += count
            self._stripe_left -= count
            if swept.esi == swept.stop_esi:
                self._end_block(swept, sequence)
            elif self._stripe_left == 0:
                self._turn += 1
            if self._swept and (self._stripe_left == 0 or swept.esi == swept.stop_esi):
                self._turn %= len(self._swept)
                self._start_stripe()
        self._next_sequence = sequence
        return sequence

    def _start_stripe(self) -> None:
        self._stripe_left = SYMBOLS_MAX if len(self._swept) == 1 else INTERLEAVE_SYMBOLS

    def _end_block(self, swept: _SweptBlock, sequence: int) -> None:
        block = swept.block
        self._next_esi[block] = swept.esi % SYMBOLS_MAX
        self._last_sequence[block] = sequence
        self._ever_sent[block] = True
        self._swept.remove(swept)

    def _start_blocks(self, parity: Callable[[int], int], depth: int) -> bool:
        """Move the pass to the next wanted blocks; return False when nothing is wanted."""
        if self.wanted_count == 0:
            return False
        block = self._next_wanted()
        if block < 0:
            self.pass_index += 1
            self._cursor = 0
            block = self._next_wanted()
        assert block >= 0
        first = block
        while block >= 0 and block - first <= _LAG_MAX and len(self._swept) < depth:
            self._start_block(block, parity)
            block = self._next_wanted()
        self._turn = 0
        self._start_stripe()
        return True

    def _start_block(self, block: int, parity: Callable[[int], int]) -> None:
        self._cursor = block + 1
        self._wanted[block] = False
        self.wanted_count -= 1
        if self._deficit[block]:  # sent whole now, which covers the repair
            self._deficit[block] = 0
            del self._repairs[block]
            self.repair_block_count -= 1
        k = int(self._k[block])
        self._swept.append(_SweptBlock(block, k, 0, k + min(parity(k), SYMBOLS_MAX - k)))

    def _next_wanted(self) -> int:
        start = self._cursor
        while start < self.block_count:
            found = np.flatnonzero(self._wanted[start : start + WINDOW_BLOCKS])
            if found.size:
                return start + int(found[0])
            start += WINDOW_BLOCKS
        return -1


def _blocks_of(
    runs: Sequence[tuple[int, int, int]], block_count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the blocks of a NACK's runs, ascending and each once, and the deficit of each."""
    table = np.array(runs, np.int64).reshape(-1, 3)
    counts = table[:, 1]
    skipped = np.cumsum(counts) - counts
    blocks = np.repeat(table[:, 0] - skipped, counts) + np.arange(int(counts.sum()))
    deficits = np.repeat(table[:, 2], counts)
    inside = blocks < block_count
    if not inside.all():
        blocks, deficits = blocks[inside], deficits[inside]
    if (blocks[1:] <= blocks[:-1]).any():  # only a hostile receiver names a block twice
        order = np.lexsort((-deficits, blocks))
        blocks, first = np.unique(blocks[order], return_index=True)
        deficits = deficits[order][first]
    return blocks, deficits
