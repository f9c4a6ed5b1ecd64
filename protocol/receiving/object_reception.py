"""A receiver's state of one object: needed blocks, missing blocks, and the NACKs for them.

Each block is in one of seven stages, kept as one octet::

    SETTLED   not needed: nothing is stored for it, it wasn't requested, or it is verified
    UNSCANNED not compared with the target yet: collected if it arrives, never NACKed
    WAITING   needed, and the pass hasn't reached it yet
    MISSING   needed, and the pass has moved beyond it, or a FLUSH arrived: to be NACKed
    ASSEMBLED enough symbols have arrived; it is being decoded and written
    WRITTEN   written, not verified yet
    POISONED  assembled, but forged symbols make it wrong: waits for the sender's digests, or is being fetched
"""

from __future__ import annotations

import dataclasses
from collections import deque
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import POISONED_POOL_SHARE, REORDER_DATAGRAM_COUNT
from protocol.receiving.block_assembly import AssembledBlock, BufferPool
from protocol.receiving.poisoned_blocks import PoisonedBlocks
from protocol.shared.block_masks import windows
from protocol.shared.sequence import sequence_difference
from protocol.trust.symbol_digests import SymbolDigests
from protocol.wire.batch import block_runs
from protocol.wire.messages import FLAG_REPAIR, CastObject


class Stage(IntEnum):
    """Stage of a block; the module describes each."""

    SETTLED = 0
    WAITING = 1
    MISSING = 2
    ASSEMBLED = 3
    WRITTEN = 4
    UNSCANNED = 5
    POISONED = 6


_RUN_SYMBOLS_MIN: Final = 12
"""Runs of one block that are shorter than this on average are gathered first."""

# As plain integers: comparing enum members takes longer than the rest of a run's bookkeeping.
_WAITING: Final = int(Stage.WAITING)
_MISSING: Final = int(Stage.MISSING)
_UNSCANNED: Final = int(Stage.UNSCANNED)


@dataclasses.dataclass(slots=True)
class _PassedRange:
    """Blocks that the pass moved beyond; their missing symbols are lost once ``sequence`` is well exceeded."""

    start: int
    stop: int
    sequence: int


class ObjectReception:
    """Reception of one object into blocks of a shared buffer pool.

    Attributes:
        stage: ``uint8[block_count]`` of :class:`Stage`.
        pool_drop_count: symbols dropped without a free buffer.
        useful_count: symbols of needed blocks that arrived.
    """

    def __init__(
        self,
        object_index: CastObject,
        *,
        source_symbols: NDArray[np.uint8],
        stored_bytes: NDArray[np.uint32],
        tag_bytes: int = 0,
        need: NDArray[np.bool_],
        pool: BufferPool,
        joined_before_start: bool,
        unscanned: NDArray[np.bool_] | None = None,
    ) -> None:
        """Start to receive.

        Args:
            object_index: the object of the cast.
            source_symbols: ``uint8[block_count]``, k of each block, 0 where nothing is stored.
            stored_bytes: ``uint32[block_count]``.
            tag_bytes: bytes that encryption adds to each block.
            need: ``bool[block_count]``: blocks that aren't on the target yet; not kept.
            pool: buffers for the symbols.
            joined_before_start: the first pass starts at block 0: blocks before the first one seen are lost, not
                still to come.
            unscanned: ``bool[block_count]``: blocks that haven't been compared with the target yet, whatever ``need``
                has for them; not kept.
        """
        self.object_index = object_index
        self.stage = np.full(source_symbols.size, Stage.SETTLED, np.uint8)
        for rows in windows(source_symbols.size):
            stored = source_symbols[rows] > 0
            self.stage[rows][need[rows] & stored] = Stage.WAITING
            if unscanned is not None:
                self.stage[rows][unscanned[rows] & stored] = Stage.UNSCANNED
        self.pool_drop_count = 0
        self.useful_count = 0
        self._k = source_symbols
        self._stored_bytes = stored_bytes
        self._tag_bytes = tag_bytes
        self._pool = pool
        self._poisoned = PoisonedBlocks(int(pool.capacity * POISONED_POOL_SHARE))
        self._partial: dict[int, AssembledBlock] = {}
        self._retry_at: dict[int, float] = {}
        self._passed: deque[_PassedRange] = deque()
        self._pass_index: int | None = None
        self._frontier = 0
        self._joined_before_start = joined_before_start
        self._missing_count = 0

    @property
    def block_count(self) -> int:
        """Return the blocks of the object."""
        return int(self.stage.shape[0])

    @property
    def unsettled_count(self) -> int:
        """Return the number of blocks that aren't verified yet."""
        return int(np.count_nonzero(self.stage))

    @property
    def incomplete_count(self) -> int:
        """Return the number of blocks with a buffer that wait for symbols, digests or the control API."""
        return len(self._partial) + self._poisoned.held_count

    @property
    def missing_count(self) -> int:
        """Return the number of blocks to be NACKed, now or later."""
        return self._missing_count

    @property
    def open_count(self) -> int:
        """Return the number of blocks with something to request, now or later: symbols or digests."""
        return self._missing_count + self._poisoned.waiting_count

    @property
    def waits_for_sender(self) -> bool:
        """Return whether it needs symbols or digests that haven't arrived."""
        return self.open_count > 0 or bool((self.stage == _WAITING).any())

    # -- symbols ----------------------------------------------------------------------------------------------

    def receive(
        self,
        headers: NDArray[np.void],
        symbols: NDArray[np.uint8],
        *,
        position: int,
        hold_s: float,
        now: float,
    ) -> tuple[list[AssembledBlock], int]:
        """Process accepted rows of this object.

        Args:
            headers: structured ``[n]`` of the wire's header dtype.
            symbols: ``uint8[n, symbol_bytes]``.
            position: number that the sender has reached, which a few forged headers can't move.
            hold_s: time without a NACK for a block after symbols of its repair arrived.
            now: monotonic seconds.

        Returns:
            The blocks that became decodable, and the number of rows with an invalid block number or k.
        """
        block = headers["block"].astype(np.int64)
        valid = block < self.block_count
        valid[valid] = self._k[block[valid]] == headers["k"][valid]
        invalid_count = int(block.size - np.count_nonzero(valid))
        if invalid_count:
            headers, symbols, block = headers[valid], symbols[valid], block[valid]
            if block.size == 0:
                return [], invalid_count
        self._follow_pass(headers, block, position)
        stage = self.stage[block]
        # A few repair symbols of a block that may be on the target already would only occupy a buffer.
        fresh = (headers["flags"] & FLAG_REPAIR) == 0
        useful = (stage == _WAITING) | (stage == _MISSING) | ((stage == _UNSCANNED) & fresh)
        if not useful.all():
            headers, symbols = headers[useful], symbols[useful]
        self.useful_count += headers.shape[0]
        runs = list(block_runs(headers))
        if (len(runs) - 1) * _RUN_SYMBOLS_MIN > headers.shape[0]:
            # Interleaved blocks: copying all rows once more costs a fifth of handling each stripe separately.
            order = np.argsort(headers["block"].astype(np.int64), kind="stable")
            headers, symbols = headers[order], symbols[order]
            runs = list(block_runs(headers))
        assembled = []
        esi = headers["esi"]
        for start, stop in runs:
            done = self._receive_run(
                int(headers["block"][start]), esi[start:stop], symbols[start:stop], now + hold_s
            )
            if done is not None:
                assembled.append(done)
        return assembled, invalid_count

    def _receive_run(
        self, block: int, esi: NDArray[np.uint8], symbols: NDArray[np.uint8], hold_until: float
    ) -> AssembledBlock | None:
        partial = self._partial.get(block)
        if partial is None:
            stage = self.stage[block]
            if stage not in (_WAITING, _MISSING, _UNSCANNED):
                return None  # completed by an earlier run of this batch
            partial = self._start(block)
            if partial is None:
                self.pool_drop_count += symbols.shape[0]
                return None
        partial.add(esi, symbols)
        if partial.missing_count:
            if self.stage[block] == _MISSING:  # its repair is arriving, requested by any receiver
                self._retry_at[block] = max(self._retry_at.get(block, 0.0), hold_until)
            return None
        del self._partial[block]
        self._retry_at.pop(block, None)
        self._move(block, Stage.ASSEMBLED)
        return partial

    def _follow_pass(self, headers: NDArray[np.void], block: NDArray[np.int64], position: int) -> None:
        """Move the frontier by the rows of new data."""
        fresh = (headers["flags"] & FLAG_REPAIR) == 0
        if not fresh.any():
            return
        pass_index = headers["pass_index"]
        lowest = block - headers["lag"]
        last = int(np.flatnonzero(fresh)[-1])
        newest_pass = int(pass_index[last])
        if self._pass_index is None:
            first = int(block[np.flatnonzero(fresh)[0]])
            self._pass_index = int(pass_index[np.flatnonzero(fresh)[0]])
            # A receiver that starts within a block gets it in the next pass: the sender ignores a NACK for it.
            self._frontier = 0 if self._joined_before_start else first + 1
        if newest_pass != self._pass_index:
            if (newest_pass - self._pass_index) % (1 << 8) >= 1 << 7:
                return  # reordered from an earlier pass
            self._pass_by(self._frontier, self.block_count, position)
            self._pass_index = newest_pass
            self._frontier = 0
        in_pass = fresh & (pass_index == newest_pass)
        frontier = int(lowest[in_pass].max())
        if frontier > self._frontier:
            self._pass_by(self._frontier, frontier, position)
            self._frontier = frontier

    def _pass_by(self, start: int, stop: int, sequence: int) -> None:
        if self._passed and self._passed[-1].stop == start and self._passed[-1].sequence == sequence:
            self._passed[-1].stop = stop
        else:
            self._passed.append(_PassedRange(start, stop, sequence))

    # -- missing blocks ---------------------------------------------------------------------------------------

    def settle_losses(self, next_sequence: int) -> None:
        """Mark blocks as MISSING that the pass moved beyond longer ago than datagrams are reordered."""
        while self._passed:
            passed = self._passed[0]
            if sequence_difference(next_sequence, passed.sequence) <= REORDER_DATAGRAM_COUNT:
                return
            self._passed.popleft()
            self._mark_missing(passed.start, passed.stop)

    def pass_all(self, sequence: int) -> None:
        """Note that the pass sent all blocks before the datagram of this number; unreceived ones count as lost soon."""
        self._pass_by(0, self.block_count, sequence)

    def flush(self) -> None:
        """Mark all needed blocks as MISSING: the sender has sent everything that was demanded."""
        self._passed.clear()
        self._mark_missing(0, self.block_count)

    def _mark_missing(self, start: int, stop: int) -> None:
        # An unscanned block is incomplete after the pass; the target may hold it, so it isn't worth a NACK yet.
        for block in [block for block in self._partial if start <= block < stop]:
            if self.stage[block] == _UNSCANNED:
                self._abandon(block)
        for rows in windows(stop, start):
            stage = self.stage[rows]
            waiting = stage == _WAITING
            count = int(np.count_nonzero(waiting))
            if count:
                stage[waiting] = _MISSING
                self._missing_count += count

    def take_due_nacks(self, blocks_max: int, *, retry_at: float, now: float) -> list[tuple[int, int]]:
        """Return ``(block, deficit)`` of the blocks to NACK now, ascending; they are due again at ``retry_at``.

        A block is NACKed only with a buffer, which is taken here. Otherwise new data could occupy the last buffer
        before the repair arrives, and the repair, sent to the whole room, would be dropped.
        """
        if self._missing_count == 0:
            return []
        held = [block for block in self._partial if self.stage[block] == _MISSING]
        # At most as many blocks as there are buffers, even if many thousands are missing.
        first = self._first_missing(self._pool.free_count + len(held))
        due = []
        for block in sorted({*held, *first}):
            if self._retry_at.get(block, 0.0) > now:
                continue
            partial = self._partial.get(block) or self._start(block)
            if partial is None:
                continue
            partial.nacked = True
            self._retry_at[block] = retry_at
            due.append((block, partial.missing_count))
            if len(due) == blocks_max:
                break
        return due

    def _first_missing(self, count_max: int) -> list[int]:
        """Return the first MISSING blocks, without searching the blocks behind them."""
        found: list[int] = []
        count = min(count_max, self._missing_count)
        for rows in windows(self.block_count):
            if len(found) == count:
                break
            indices = np.flatnonzero(self.stage[rows] == _MISSING)[: count - len(found)]
            found += (indices + rows.start).tolist()
        return found

    def abandon_missing(self) -> None:
        """Release the buffers of incomplete blocks that this pass has moved beyond.

        For a receiver whose repairs have to wait: these buffers serve blocks that it can still receive completely.
        """
        missing = [block for block in self._partial if self.stage[block] == _MISSING]
        for block in [block for block in missing if block < self._frontier]:
            self._abandon(block)

    def _abandon(self, block: int) -> None:
        """Release the buffer of an incomplete block, if it has one."""
        partial = self._partial.pop(block, None)
        if partial is not None:
            self._pool.release(partial)
        self._retry_at.pop(block, None)

    def _start(self, block: int) -> AssembledBlock | None:
        """Start to assemble a block; return None without a free buffer."""
        cast_bytes = int(self._stored_bytes[block]) + self._tag_bytes
        partial = self._pool.take(self.object_index, block, int(self._k[block]), cast_bytes)
        if partial is not None:
            partial.digests = self._poisoned.known_digests(block)
            self._partial[block] = partial
        return partial

    # -- results of the scan ----------------------------------------------------------------------------------

    def mark_held(self, blocks: NDArray[np.integer]) -> NDArray[np.int64]:
        """Note that the target already holds ``blocks``.

        Returns:
            The blocks that this settles. Blocks that were received completely during the scan are written anyway.
        """
        held = np.asarray(blocks[self.stage[blocks] == _UNSCANNED], np.int64)
        self.stage[held] = Stage.SETTLED
        for block in [block for block in self._partial if self.stage[block] == Stage.SETTLED]:
            self._abandon(block)
        return held

    def not_arrived(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of ``blocks`` that weren't received completely during the scan."""
        unscanned: NDArray[np.int64] = blocks[self.stage[blocks] == _UNSCANNED]
        return unscanned

    def mark_needed(self, blocks: NDArray[np.integer]) -> None:
        """Note that the target misses ``blocks``, as the sender knows: wait for those that haven't arrived yet."""
        self.stage[blocks[self.stage[blocks] == _UNSCANNED]] = Stage.WAITING

    # -- poisoned blocks --------------------------------------------------------------------------------------

    def mark_poisoned(self, assembled: AssembledBlock, now: float) -> None:
        """Note that a decoded block contradicts its hash, and take its buffer: some of its symbols are forged."""
        block = assembled.block
        assembled.fetched = False
        if not self._poisoned.hold(assembled, now):
            self._pool.release(assembled)
            self._move(block, Stage.MISSING)
            return
        self._move(block, Stage.POISONED)
        digests = self._poisoned.known_digests(block)
        if digests is not None:
            self._use_digests(block, digests, now)

    def receive_digests(self, block: int, digests: SymbolDigests, now: float) -> None:
        """Process the sender's digests of a block: drop the symbols that others forged."""
        if block >= self.block_count or self.stage[block] == Stage.SETTLED:
            return
        self._poisoned.remember(block, digests)
        partial = self._partial.get(block)
        if partial is not None:
            partial.drop_forged(digests)
        else:
            self._use_digests(block, digests, now)

    def _use_digests(self, block: int, digests: SymbolDigests, now: float) -> None:
        assembled = self._poisoned.take_waiting(block)
        if assembled is None:
            return
        assembled.restore_received()
        if assembled.drop_forged(digests):
            self._partial[block] = assembled
            self._retry_at.pop(block, None)
            self._move(block, Stage.MISSING)
            return
        # All match, and yet the block is wrong: another salt, or the control API, will tell.
        self._poisoned.forget_digests(block)
        assembled.digests = None
        self._poisoned.hold(assembled, now)

    def take_due_digest_requests(self, blocks_max: int, *, retry_s: float, now: float) -> list[int]:
        """Return the blocks whose digests to request from the sender now."""
        return self._poisoned.take_due_requests(blocks_max, retry_s=retry_s, now=now)

    def start_fetches(self, now: float) -> list[AssembledBlock]:
        """Return the blocks to fetch over the control API from now on."""
        return self._poisoned.start_fetches(now)

    def take_fetched(self, block: int) -> AssembledBlock | None:
        """Note that a block was fetched, and return its buffer to be filled; None if it isn't waited for."""
        assembled = self._poisoned.take_fetched(block)
        if assembled is not None:
            self._move(block, Stage.ASSEMBLED)
        return assembled

    def release_all(self) -> None:
        """Release all buffers: the object arrives by another way."""
        for block in [*self._partial.values(), *self._poisoned.take_all()]:
            self._pool.release(block)
        self._partial.clear()

    # -- results of the pipeline ------------------------------------------------------------------------------

    def mark_written(self, block: int) -> None:
        """Note that the block is on the target, not verified yet."""
        self._move(block, Stage.WRITTEN)

    def mark_settled(self, blocks: NDArray[np.integer]) -> None:
        """Note that the blocks are verified."""
        self.stage[blocks] = Stage.SETTLED
        self._poisoned.forget(blocks)

    def mark_rejected(self, block: int) -> None:
        """Note that the block, as assembled or written, is wrong: NACK all of it again."""
        self._move(block, Stage.MISSING)

    def _move(self, block: int, stage: Stage) -> None:
        self._missing_count += (stage == Stage.MISSING) - (int(self.stage[block]) == Stage.MISSING)
        self.stage[block] = stage
