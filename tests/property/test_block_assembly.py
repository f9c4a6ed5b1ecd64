"""Block assembly: any k distinct symbols in any order complete the block, and no slot is ever wrong."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protocol.fec.reed_solomon import decode_in_place, encode_repair
from protocol.receiving.block_assembly import BufferPool
from protocol.trust.symbol_digests import SymbolDigests

SYMBOL_BYTES = 16


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_any_order_of_symbols_assembles_the_block(k: int, repair_count: int, seed: int) -> None:
    """One seed draws the order: drawing every batch separately took hypothesis 40 s."""
    n = min(255, k + repair_count)
    rng = np.random.default_rng(seed)
    symbols = np.zeros((n, SYMBOL_BYTES), np.uint8)
    symbols[:k] = rng.integers(0, 256, (k, SYMBOL_BYTES))
    if n > k:
        encode_repair(symbols[:k], k, symbols[k:])
    pool = BufferPool(pool_bytes=1, symbols_per_block_max=k, symbol_bytes=SYMBOL_BYTES)
    block = pool.take(1, 0, k, k * SYMBOL_BYTES)
    assert block is not None
    seen: set[int] = set()
    while block.missing_count:
        count = int(rng.integers(1, n + 1)) if len(seen) < k + 20 else n
        if rng.random() < 0.5:
            esi = rng.integers(0, n, count, dtype=np.uint8)
        else:
            start = int(rng.integers(0, n))
            esi = np.arange(start, min(n, start + count), dtype=np.uint8)
        block.add(esi, symbols[esi])
        seen |= set(esi.tolist())
        held = {int(e) for e in block.slot_esi if e != 255}
        assert len(held) == k - block.missing_count
        assert held <= seen
        assert block.missing_count == max(0, k - len(seen)), "a distinct symbol was thrown away"
    decode_in_place(block.slots, block.slot_esi)
    assert np.array_equal(block.slots, symbols[:k])


@given(st.integers(1, 40), st.integers(0, 20), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_only_forged_symbols_are_dropped(k: int, lost_count: int, forged_count: int, seed: int) -> None:
    """After a wrong decode the sender's digests leave exactly its own symbols, repair symbols included."""
    rng = np.random.default_rng(seed)
    symbols = np.zeros((k + 40, SYMBOL_BYTES), np.uint8)
    symbols[:k] = rng.integers(0, 256, (k, SYMBOL_BYTES))
    encode_repair(symbols[:k], k, symbols[k:])
    digests = SymbolDigests.of(symbols[:k], rng.bytes(16))
    lost_count = min(lost_count, k)
    arrived = np.sort(np.concatenate([
        rng.permutation(k)[lost_count:], k + rng.permutation(40)[:lost_count]
    ])).astype(np.uint8)  # fmt: skip
    forged = rng.permutation(arrived)[:forged_count]
    heard = symbols.copy()
    heard[forged] ^= rng.integers(1, 256, (forged.size, SYMBOL_BYTES), np.uint8)
    pool = BufferPool(pool_bytes=1, symbols_per_block_max=k, symbol_bytes=SYMBOL_BYTES)
    block = pool.take(1, 0, k, k * SYMBOL_BYTES)
    assert block is not None
    block.add(arrived, heard[arrived])
    decode_in_place(block.slots, block.slot_esi)
    block.restore_received()
    assert block.drop_forged(digests) == forged.size == block.missing_count
    assert set(np.flatnonzero(block.seen).tolist()) == set(arrived.tolist()) - set(forged.tolist())
    forged_again = heard[forged].copy()
    block.add(forged, forged_again)
    assert block.missing_count == forged.size, "a forgery is dropped on arrival"
    block.add(forged, symbols[forged])
    assert block.missing_count == 0
    decode_in_place(block.slots, block.slot_esi)
    assert np.array_equal(block.slots, symbols[:k])


def test_the_pool_is_bounded_and_reused() -> None:
    pool = BufferPool(pool_bytes=10 * 4 * SYMBOL_BYTES, symbols_per_block_max=4, symbol_bytes=SYMBOL_BYTES)
    blocks = [pool.take(1, number, 4, 64) for number in range(pool.capacity)]
    assert pool.fill == 1.0
    assert pool.take(1, 99, 4, 64) is None
    assert blocks[0] is not None
    pool.release(blocks[0])
    again = pool.take(1, 99, 2, 32)
    assert again is not None
    assert again.buffer_index == blocks[0].buffer_index
    assert again.missing_count == 2
