"""Block assembly: any k distinct symbols in any order complete the block, and no slot is ever wrong."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protocol.fec.reed_solomon import decode_in_place, encode_repair
from protocol.receiving.block_assembly import BufferPool

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
