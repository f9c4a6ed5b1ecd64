"""Blocks through every kernel: at the limits, in strided rows, in threads, and with impossible descriptions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.constants import ESI_NONE, SYMBOL_BYTES_MAX, SYMBOL_BYTES_MIN
from protocol.errors import DecodeError, ProtocolError
from protocol.fec.gf256 import Kernel, cauchy_rows, multiply_matrices
from protocol.fec.reed_solomon import decode_in_place, encode_repair
from tests.support.programs.fec_kernels import ISAL_KERNELS, KERNELS

Bytes = NDArray[np.uint8]


def _lossy_block(k: int, e: int, symbol_bytes: int, seed: int) -> tuple[Bytes, Bytes, Bytes]:
    """Return a block's source symbols, and slots with ``slot_esi`` in which ``e`` are missing."""
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, (k, symbol_bytes), dtype=np.uint8)
    repair = multiply_matrices(cauchy_rows(k, k, 255 - k), source)
    missing = rng.permutation(k)[:e]
    chosen = rng.permutation(255 - k)[:e]
    slots, slot_esi = source.copy(), np.arange(k, dtype=np.uint8)
    slots[missing] = repair[chosen]
    slot_esi[missing] = k + chosen
    return source, slots, slot_esi


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("k", "e"),
    [(1, 0), (1, 1), (2, 1), (2, 2), (127, 127), (128, 127), (182, 73), (223, 32), (224, 1), (224, 31)],
)
def test_blocks_at_the_limits_are_recovered(kernel: Kernel, k: int, e: int) -> None:
    source, slots, slot_esi = _lossy_block(k, e, 64, seed=k + e)
    decode_in_place(slots, slot_esi, kernel=kernel)
    assert np.array_equal(slots, source)
    assert slot_esi.tolist() == list(range(k))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("symbol_bytes", [SYMBOL_BYTES_MIN, 1412, 1440, SYMBOL_BYTES_MAX])
def test_symbols_of_every_mtu_are_recovered(kernel: Kernel, symbol_bytes: int) -> None:
    source, slots, slot_esi = _lossy_block(20, 7, symbol_bytes, seed=symbol_bytes)
    decode_in_place(slots, slot_esi, kernel=kernel)
    assert np.array_equal(slots, source)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_inside_frames_are_used_in_place_and_headers_stay(kernel: Kernel) -> None:
    source, slots, slot_esi = _lossy_block(30, 9, 100, seed=4)
    frames = np.full((30 + 12, 32 + 100 + 5), 0xEE, np.uint8)
    frames[:30, 32:132] = source
    encode_repair(frames[:30, 32:132], 33, frames[30:, 32:132], kernel=kernel)
    assert np.array_equal(frames[30:, 32:132], multiply_matrices(cauchy_rows(30, 33, 12), source))
    # every second frame, last frame first: any row stride will do
    spread = np.full((60, 32 + 100 + 5), 0xEE, np.uint8)
    view = spread[::-2, 32:132]
    view[...] = slots
    decode_in_place(view, slot_esi, kernel=kernel)
    assert np.array_equal(view, source)
    for array in (frames, spread):
        assert (array[:, :32] == 0xEE).all()
        assert (array[:, 132:] == 0xEE).all()
    assert (spread[::2] == 0xEE).all()


def test_the_kernel_of_the_machine_is_the_default() -> None:
    source, slots, slot_esi = _lossy_block(50, 10, 128, seed=5)
    out = np.zeros((3, 128), np.uint8)
    encode_repair(source, 60, out)
    assert np.array_equal(out, multiply_matrices(cauchy_rows(50, 60, 3), source))
    decode_in_place(slots, slot_esi)
    assert np.array_equal(slots, source)


def test_no_repair_symbols_and_read_only_sources_are_fine() -> None:
    source = np.ones((5, 64), np.uint8)
    source.flags.writeable = False
    encode_repair(source, 5, np.empty((0, 64), np.uint8))
    out = np.empty((1, 64), np.uint8)
    encode_repair(source, 254, out)
    assert np.array_equal(out, multiply_matrices(cauchy_rows(5, 254, 1), source))


@pytest.mark.parametrize("kernel", ISAL_KERNELS)
def test_threads_do_not_disturb_each_other(kernel: Kernel) -> None:
    blocks = [_lossy_block(40 + seed % 5, 8, 1440, seed) for seed in range(40)]

    def decode(block: tuple[Bytes, Bytes, Bytes]) -> bool:
        source, slots, slot_esi = block
        repair = np.empty((8, 1440), np.uint8)
        encode_repair(source, len(source), repair, kernel=kernel)
        decode_in_place(slots, slot_esi, kernel=kernel)
        expected = multiply_matrices(cauchy_rows(len(source), len(source), 8), source)
        return np.array_equal(slots, source) and np.array_equal(repair, expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(decode, blocks))


@pytest.mark.parametrize(
    "slot_esi",
    [
        pytest.param([0, 1, 9, 9], id="the same repair symbol twice"),
        pytest.param([0, 1, 2, 2], id="a source symbol in another's slot"),
        pytest.param([1, 0, 2, 3], id="two source symbols exchanged"),
        pytest.param([0, ESI_NONE, 2, 3], id="an empty slot"),
        pytest.param([ESI_NONE] * 4, id="nothing received"),
    ],
)
def test_a_description_that_can_not_be_true_changes_nothing(slot_esi: list[int]) -> None:
    slots = np.arange(4 * 64, dtype=np.uint8).reshape(4, 64)
    before = slots.copy()
    described = np.array(slot_esi, np.uint8)
    with pytest.raises(DecodeError, match="slots"):
        decode_in_place(slots, described)
    assert np.array_equal(slots, before)
    assert described.tolist() == slot_esi


def _read_only(array: Bytes) -> Bytes:
    array.flags.writeable = False
    return array


def _zeros(*shape: int) -> Bytes:
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("slots", "slot_esi"),
    [
        pytest.param(_zeros(4), _zeros(4), id="one row instead of rows"),
        pytest.param(_zeros(0, 64), _zeros(0), id="no rows"),
        pytest.param(_zeros(4, 0), _zeros(4), id="no bytes"),
        pytest.param(_zeros(225, 64), _zeros(225), id="more than a block has"),
        pytest.param(np.zeros((4, 64), np.uint16), _zeros(4), id="words"),
        pytest.param(_zeros(4, 128)[:, ::2], _zeros(4), id="bytes of a row lie apart"),
        pytest.param(_zeros(4, 64), _zeros(3), id="another number of slots"),
        pytest.param(_zeros(4, 64), np.zeros(4, np.int64), id="esi as words"),
        pytest.param(_read_only(_zeros(4, 64)), _zeros(4), id="read-only slots"),
        pytest.param(_zeros(4, 64), _read_only(_zeros(4)), id="read-only description"),
    ],
)
def test_memory_that_a_kernel_must_not_be_given_is_refused_by_the_decoder(
    slots: Bytes, slot_esi: Bytes
) -> None:
    with pytest.raises(DecodeError):
        decode_in_place(slots, slot_esi)


@pytest.mark.parametrize(
    ("source", "esi_start", "out"),
    [
        pytest.param(_zeros(4, 64), 3, _zeros(1, 64), id="a source symbol"),
        pytest.param(_zeros(4, 64), 254, _zeros(2, 64), id="beyond the last esi"),
        pytest.param(_zeros(225, 64), 225, _zeros(1, 64), id="more than a block has"),
        pytest.param(_zeros(0, 64), 0, _zeros(1, 64), id="an empty block"),
        pytest.param(_zeros(4, 64), 4, _zeros(1, 65), id="another symbol size"),
        pytest.param(_zeros(64), 4, _zeros(1, 64), id="one row instead of rows"),
        pytest.param(_zeros(4, 128)[:, ::2], 4, _zeros(1, 64), id="bytes of a row lie apart"),
        pytest.param(_zeros(4, 64), 4, np.zeros((1, 64), np.int8), id="signed bytes"),
        pytest.param(_zeros(4, 64), 4, _read_only(_zeros(1, 64)), id="read-only output"),
    ],
)
def test_memory_that_a_kernel_must_not_be_given_is_refused_by_the_encoder(
    source: Bytes, esi_start: int, out: Bytes
) -> None:
    with pytest.raises(ProtocolError):
        encode_repair(source, esi_start, out)
