"""Reception of passes: a block that counts as lost too soon is sent twice to the room, one too late hangs it.

The passes are those of a real :class:`Demand`, with headers as the transmitter numbers them.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.constants import INTERLEAVE_BLOCKS, INTERLEAVE_SYMBOLS, REORDER_DATAGRAM_COUNT
from protocol.receiving.block_assembly import BufferPool
from protocol.receiving.object_reception import ObjectReception, Stage
from protocol.sending.transmission.demand import Demand, SegmentList
from protocol.wire.batch import HEADER_DTYPE

K = 60
BLOCK_COUNT = 24
SYMBOL_BYTES = 16
BATCH = 44


class Receiver:
    """A reception and its pool; complete blocks are written and verified at once."""

    def __init__(self, *, pool_blocks: int = 64, from_start: bool = True, unscanned: bool = False) -> None:
        self.pool = BufferPool(
            pool_bytes=pool_blocks * K * SYMBOL_BYTES, symbols_per_block_max=K, symbol_bytes=SYMBOL_BYTES
        )
        self.reception = ObjectReception(
            1,
            source_symbols=np.full(BLOCK_COUNT, K, np.uint8),
            stored_bytes=np.full(BLOCK_COUNT, K * SYMBOL_BYTES, np.uint32),
            need=np.ones(BLOCK_COUNT, np.bool_),
            pool=self.pool,
            joined_before_start=from_start,
            unscanned=np.full(BLOCK_COUNT, unscanned),
        )
        self.verified: list[int] = []

    def take(self, headers: NDArray[np.void], now: float = 100.0, *, demoted: bool = False) -> None:
        """Receive in batches as the kernel returns them."""
        for start in range(0, headers.size, BATCH):
            batch = headers[start : start + BATCH]
            symbols = np.zeros((batch.size, SYMBOL_BYTES), np.uint8)
            position = int(batch["sequence"].max()) + 1
            assembled, invalid_count = self.reception.receive(
                batch, symbols, position=position, hold_s=0.05, now=now
            )
            assert invalid_count == 0
            self.reception.settle_losses(position)
            if demoted:
                self.reception.abandon_missing()
            for block in assembled:
                self.pool.release(block)
                self.reception.mark_settled(np.array([block.block]))
                self.verified.append(block.block)

    def ask(self, now: float = 100.0) -> dict[int, int]:
        """Return the deficits by block."""
        return dict(self.reception.take_due_nacks(1000, retry_at=now + 0.1, now=now))


def _demand() -> Demand:
    demand = Demand(1, np.full(BLOCK_COUNT, K, np.uint8))
    demand.want(None)
    return demand


def _pass(demand: Demand, *, depth: int, parity: int = 0, sequence: int = 0) -> NDArray[np.void]:
    """Return the headers of everything that is demanded now."""
    segments = SegmentList(1 << 16)
    demand.plan_repairs(segments, sequence, 0.0)
    demand.plan_pass(segments, sequence, lambda _: parity, depth)
    rows = segments.array()
    counts = rows["count"]
    headers = np.zeros(int(counts.sum()), HEADER_DTYPE)
    for name in ("flags", "pass_index", "lag", "block", "k"):
        headers[name] = np.repeat(rows[name], counts)
    headers["esi"] = np.concatenate([np.arange(row["esi"], row["esi"] + row["count"]) for row in rows])
    headers["sequence"] = np.arange(sequence, sequence + headers.size)
    return headers


@pytest.mark.parametrize("depth", [1, 3, INTERLEAVE_BLOCKS])
def test_blocks_that_are_sent_together_are_not_taken_for_lost_while_they_last(depth: int) -> None:
    """Otherwise each of eight open blocks would be NACKed while it is on its way, and sent twice."""
    receiver = Receiver()
    headers = _pass(_demand(), depth=depth)
    assert depth * K > REORDER_DATAGRAM_COUNT or depth < 3, "longer open than datagrams are reordered"
    for start in range(0, headers.size, BATCH):
        receiver.take(headers[start : start + BATCH])
        assert receiver.reception.missing_count == 0
    assert sorted(receiver.verified) == list(range(BLOCK_COUNT))


@pytest.mark.parametrize("depth", [1, INTERLEAVE_BLOCKS])
def test_a_lost_super_datagram_is_nacked_to_the_symbol(depth: int) -> None:
    receiver = Receiver()
    headers = _pass(_demand(), depth=depth)
    lost = headers[200 : 200 + BATCH]
    receiver.take(np.concatenate([headers[:200], headers[200 + BATCH :]]))
    blocks, counts = np.unique(lost["block"], return_counts=True)
    assert receiver.ask() == dict(zip(blocks.tolist(), counts.tolist(), strict=True))
    assert max(counts) <= (BATCH // 2 if depth > 1 else BATCH), "interleaved, each block has lost a little"


def test_parity_closes_the_gaps_of_a_lost_super_datagram_without_a_question() -> None:
    receiver = Receiver()
    headers = _pass(_demand(), depth=INTERLEAVE_BLOCKS, parity=INTERLEAVE_SYMBOLS)
    receiver.take(np.delete(headers, slice(200, 200 + BATCH)))
    receiver.reception.flush()
    assert receiver.ask() == {}
    assert sorted(receiver.verified) == list(range(BLOCK_COUNT))


def test_a_late_receiver_does_not_nack_earlier_blocks() -> None:
    """The pass that its join causes sends the block anyway."""
    receiver = Receiver(from_start=False)
    headers = _pass(_demand(), depth=1)
    receiver.take(headers[10 * K :])
    assert receiver.ask() == {}
    assert sorted(receiver.verified) == list(range(10, BLOCK_COUNT))


def test_an_arriving_repair_silences_receivers_that_have_not_nacked_yet() -> None:
    """In a large room one receiver NACKs for all: the others' time comes in the middle of the repair."""
    receiver, demand = Receiver(), _demand()
    headers = _pass(demand, depth=1)
    receiver.take(np.delete(headers, slice(5 * K, 5 * K + 20)))
    demand.nack([(5, 1, 20)], headers.size)
    repair = _pass(demand, depth=1, sequence=headers.size)
    receiver.take(repair[:8], now=100.0)
    assert receiver.ask(100.01) == {}
    assert receiver.ask(100.2) == {5: 12}, "the rest of it was lost"
    receiver.take(repair[8:], now=100.3)
    assert sorted(receiver.verified) == list(range(BLOCK_COUNT))


def test_a_demoted_receiver_keeps_its_buffers_for_complete_blocks() -> None:
    """With every buffer held by an incomplete block it would receive nothing more until the tail."""
    headers = _pass(_demand(), depth=1)
    holes = np.concatenate([np.arange(block * K, block * K + 5) for block in range(20)])
    demoted, waiting = Receiver(pool_blocks=8), Receiver(pool_blocks=8)
    demoted.take(np.delete(headers, holes), demoted=True)
    waiting.take(np.delete(headers, holes))
    assert demoted.verified == [20, 21, 22, 23]
    assert waiting.verified == [], "its buffers wait for repairs"


def test_abandoned_blocks_are_nacked_whole_in_the_tail() -> None:
    receiver = Receiver()
    headers = _pass(_demand(), depth=1)
    receiver.take(np.delete(headers, slice(5 * K, 5 * K + 20)), demoted=True)
    assert receiver.pool.fill == 0.0
    assert receiver.ask() == {5: K}
    assert receiver.reception.stage[5] == Stage.MISSING
    assert receiver.reception.incomplete_count == 1, "the buffer for the answer"


def test_a_demoted_receiver_collects_the_pass_of_a_late_joiner() -> None:
    """If every batch discarded it, because an earlier pass left it incomplete, it would be sent a third time."""
    demand, receiver = _demand(), Receiver()
    first = _pass(demand, depth=1)
    receiver.take(np.delete(first, slice(5 * K, 15 * K)), demoted=True)
    demand.want(None)
    receiver.take(_pass(demand, depth=1, sequence=first.size), demoted=True)
    assert sorted(receiver.verified) == list(range(BLOCK_COUNT))


def test_unscanned_blocks_are_collected_and_never_nacked() -> None:
    """Others need the block; this machine may hold it already: a NACK would repeat it for nothing."""
    receiver = Receiver(unscanned=True)
    headers = _pass(_demand(), depth=1)
    receiver.take(np.delete(headers, slice(5 * K, 5 * K + 20)))
    receiver.reception.flush()
    assert receiver.ask() == {}
    assert sorted(receiver.verified) == [block for block in range(BLOCK_COUNT) if block != 5]
    assert receiver.pool.free_count == receiver.pool.capacity, "the incomplete one holds no buffer"


def test_repairs_for_others_take_no_buffers_of_a_machine_that_is_still_scanning() -> None:
    receiver, demand = Receiver(unscanned=True), _demand()
    _pass(demand, depth=1)
    demand.nack([(5, 3, 20)], BLOCK_COUNT * K)
    receiver.take(_pass(demand, depth=1, sequence=BLOCK_COUNT * K))
    assert receiver.pool.free_count == receiver.pool.capacity


def test_held_blocks_are_settled_and_missing_ones_awaited() -> None:
    receiver, demand = Receiver(unscanned=True), Demand(1, np.full(BLOCK_COUNT, K, np.uint8))
    everything = np.arange(BLOCK_COUNT)
    lacking = np.array([3, 17])
    assert receiver.reception.mark_held(np.setdiff1d(everything, lacking)).size == BLOCK_COUNT - 2
    need = np.zeros(BLOCK_COUNT, np.bool_)
    need[lacking] = True
    demand.want(need)
    receiver.reception.mark_needed(lacking)
    headers = _pass(demand, depth=1)
    assert headers.size == 2 * K
    receiver.take(headers[:-7])
    receiver.reception.flush()
    assert receiver.ask() == {17: 7}, "from now on it is a block like any other"


def test_a_block_received_during_its_scan_is_written_anyway() -> None:
    receiver = Receiver(unscanned=True)
    headers = _pass(_demand(), depth=1)[:K]
    (assembled,), _ = receiver.reception.receive(
        headers, np.zeros((K, SYMBOL_BYTES), np.uint8), position=K, hold_s=0.05, now=1.0
    )
    assert receiver.reception.mark_held(np.array([0, 1])).tolist() == [1]
    receiver.reception.mark_needed(np.array([0]))
    assert receiver.reception.stage[0] == Stage.ASSEMBLED
    receiver.pool.release(assembled)


def test_a_block_that_is_found_on_the_target_halfway_gives_its_buffer_back() -> None:
    receiver = Receiver(unscanned=True)
    receiver.take(_pass(_demand(), depth=1)[: K // 2])
    assert receiver.pool.free_count == receiver.pool.capacity - 1
    receiver.reception.mark_held(np.arange(BLOCK_COUNT))
    assert receiver.pool.free_count == receiver.pool.capacity
