"""Any k of n symbols decode to the block, byte for byte as in plain matrix algebra."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from protocol.constants import SOURCE_SYMBOLS_MAX, SYMBOLS_MAX
from protocol.errors import DecodeError
from protocol.fec.gf256 import Kernel, cauchy_rows, invert_matrix, multiply_matrices
from protocol.fec.reed_solomon import decode_in_place, encode_repair
from tests.support.programs.fec_kernels import ISAL_KERNELS, KERNELS, ORACLE

Bytes = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """Return a block and the numbers of its symbols that arrived."""

    source: Bytes
    missing: NDArray[np.intp]
    repair_esi: NDArray[np.intp]
    """Return as many repair symbols as source symbols are missing, in any order."""

    def slots(self) -> tuple[Bytes, Bytes]:
        k = len(self.source)
        slots, slot_esi = self.source.copy(), np.arange(k, dtype=np.uint8)
        all_repair = multiply_matrices(cauchy_rows(k, k, SYMBOLS_MAX - k), self.source)
        slots[self.missing] = all_repair[self.repair_esi - k]
        slot_esi[self.missing] = self.repair_esi
        return slots, slot_esi


@st.composite
def losses(draw: st.DrawFn) -> Loss:
    k = draw(st.integers(1, SOURCE_SYMBOLS_MAX))
    e = draw(st.integers(0, min(k, SYMBOLS_MAX - k)))
    symbol_bytes = draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Loss(
        rng.integers(0, 256, (k, symbol_bytes), dtype=np.uint8),
        rng.permutation(k)[:e],
        k + rng.permutation(SYMBOLS_MAX - k)[:e],
    )


def _eliminated(slots: Bytes, slot_esi: Bytes) -> Bytes:
    """Recover the missing symbols by elimination: repair minus known symbols, times the inverse of the rest."""
    k = len(slots)
    missing = np.flatnonzero(slot_esi != np.arange(k))
    present = np.flatnonzero(slot_esi == np.arange(k))
    rows = cauchy_rows(k, k, SYMBOLS_MAX - k)[slot_esi[missing].astype(np.intp) - k]
    unknown = slots[missing] ^ multiply_matrices(rows[:, present], slots[present])
    return multiply_matrices(invert_matrix(rows[:, missing]), unknown)


@pytest.mark.parametrize("kernel", KERNELS)
@given(loss=losses())
def test_any_k_symbols_make_the_block(kernel: Kernel, loss: Loss) -> None:
    slots, slot_esi = loss.slots()
    expected = _eliminated(slots, slot_esi)
    missing = slot_esi != np.arange(len(slots))
    decode_in_place(slots, slot_esi, kernel=kernel)
    assert np.array_equal(slots[missing], expected)
    assert np.array_equal(slots, loss.source)
    assert np.array_equal(slot_esi, np.arange(len(slots)))


@pytest.mark.parametrize("kernel", ISAL_KERNELS)
@given(loss=losses(), data=st.data())
def test_kernels_make_the_same_repair_symbols(kernel: Kernel, loss: Loss, data: st.DataObject) -> None:
    """A sender with ISA-L and a receiver without it take part in one cast."""
    k, symbol_bytes = loss.source.shape
    esi_start = data.draw(st.integers(k, SYMBOLS_MAX - 1))
    count = data.draw(st.integers(0, SYMBOLS_MAX - esi_start))
    out, expected = np.zeros((2, count, symbol_bytes), np.uint8)
    encode_repair(loss.source, esi_start, out, kernel=kernel)
    encode_repair(loss.source, esi_start, expected, kernel=ORACLE)
    assert np.array_equal(out, expected)
    assert np.array_equal(out, multiply_matrices(cauchy_rows(k, esi_start, count), loss.source))


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    loss=losses(), before=st.integers(0, 40), after=st.integers(0, 40), step=st.sampled_from([1, 2, -1, -3])
)
def test_rows_may_lie_anywhere(kernel: Kernel, loss: Loss, before: int, after: int, step: int) -> None:
    slots, slot_esi = loss.slots()
    k, symbol_bytes = slots.shape
    frames = np.full((k * abs(step), before + symbol_bytes + after), 0xA5, np.uint8)
    rows = frames[::step, before : before + symbol_bytes]
    rows[...] = slots
    decode_in_place(rows, slot_esi, kernel=kernel)
    assert np.array_equal(rows, loss.source)
    repair = np.full((2 * (SYMBOLS_MAX - k), before + symbol_bytes + after), 0xA5, np.uint8)
    repair_rows = repair[::2, before : before + symbol_bytes]
    encode_repair(rows, k, repair_rows, kernel=kernel)
    assert np.array_equal(repair_rows, multiply_matrices(cauchy_rows(k, k, SYMBOLS_MAX - k), loss.source))
    rows[...] = 0xA5
    repair_rows[...] = 0xA5
    assert (frames == 0xA5).all(), "bytes between the rows were written"
    assert (repair == 0xA5).all(), "bytes between the rows were written"


@given(
    hnp.arrays(np.uint8, st.integers(1, SOURCE_SYMBOLS_MAX), elements=st.integers(0, 255)),
    st.lists(st.tuples(st.integers(0, SOURCE_SYMBOLS_MAX - 1), st.integers(0, 255)), max_size=6),
    st.booleans(),
)
def test_a_description_is_decoded_or_refused_whole(
    drawn: Bytes, changes: list[tuple[int, int]], from_order: bool
) -> None:
    """Arbitrary or slightly wrong ``slot_esi`` neither crash nor leave a half-decoded block."""
    slot_esi = np.arange(len(drawn), dtype=np.uint8) if from_order else drawn.copy()
    k = len(slot_esi)
    for slot, esi in changes:
        slot_esi[slot % k] = esi
    missing = [slot for slot in range(k) if slot_esi[slot] != slot]
    repair = [int(slot_esi[slot]) for slot in missing]
    consistent = len(set(repair)) == len(repair) and all(k <= esi < SYMBOLS_MAX for esi in repair)
    slots = np.random.default_rng(k).integers(0, 256, (k, 32), dtype=np.uint8)
    slots_before, esi_before = slots.copy(), slot_esi.copy()
    if consistent:
        decode_in_place(slots, slot_esi)
        assert np.array_equal(slot_esi, np.arange(k))
        assert np.array_equal(slots[missing], _eliminated(slots_before, esi_before))
    else:
        with pytest.raises(DecodeError):
            decode_in_place(slots, slot_esi)
        assert np.array_equal(slots, slots_before)
        assert np.array_equal(slot_esi, esi_before)
