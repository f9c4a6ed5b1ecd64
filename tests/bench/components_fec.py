"""Benchmark of the erasure code: encoding, and decoding compared with encoding of as many symbols as were missing."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from protocol.errors import MissingDependencyError
from protocol.fec.gf256 import Kernel
from protocol.fec.isal import IsalKernel, best_kernel, libraries
from protocol.fec.reed_solomon import decode_in_place, encode_repair

SYMBOL_BYTES = 1440
ENCODED = ((64, 8), (128, 16), (182, 8), (182, 16), (182, 24), (182, 32), (182, 40))
DECODED_K = 182
MISSING_COUNTS = (1, 4, 9, 18, 36)
BLOCK_COUNT = 32
"""Number of blocks, 8 MB in total, so that no block stays in the core's cache."""
ROUNDS = 24


def _seconds(function: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    function()
    return time.perf_counter() - started_s


def _kernels() -> list[Kernel]:
    """Return the kernel in use, then any other ISA-L of this machine."""
    kernels = [best_kernel()]
    for library, name in libraries():
        try:
            if name != kernels[0].name:
                kernels.append(IsalKernel(library, name))
        except MissingDependencyError:
            continue
    return kernels


def _row(component: str, rate: float, unit: str) -> dict[str, object]:
    return {"component": component, "rate": rate, "unit": unit}


def _encoding(kernel: Kernel, k: int, m: int, blocks: Sequence[NDArray[np.uint8]]) -> dict[str, object]:
    """Return source bytes per second at the median time of a block."""
    out = np.empty((m, SYMBOL_BYTES), np.uint8)
    times_s = [
        _seconds(functools.partial(encode_repair, block[:k], k, out, kernel=kernel))
        for _ in range(ROUNDS)
        for block in blocks
    ]
    rate = k * SYMBOL_BYTES / statistics.median(times_s) / 1e9
    return _row(f"encode k={k} m={m}, {kernel.name}", rate, "GB/s")


def _decoding(
    kernel: Kernel, missing_count: int, blocks: Sequence[NDArray[np.uint8]]
) -> list[dict[str, object]]:
    """Decode and encode the same blocks alternately, each first equally often."""
    k = DECODED_K
    rng = np.random.default_rng(missing_count)
    out = np.empty((missing_count, SYMBOL_BYTES), np.uint8)
    repair = np.empty((255 - k, SYMBOL_BYTES), np.uint8)
    encode_s, decode_s = [], []
    for turn in range(ROUNDS):
        for number, block in enumerate(blocks):
            missing = np.sort(rng.permutation(k)[:missing_count])
            esi = k + rng.permutation(255 - k)[:missing_count]
            encode_repair(block, k, repair, kernel=kernel)
            lost = block[missing]
            slot_esi = np.arange(k, dtype=np.uint8)
            slot_esi[missing] = esi
            encode = functools.partial(encode_repair, block, k, out, kernel=kernel)
            decode = functools.partial(decode_in_place, block, slot_esi, kernel=kernel)
            encode_first = (turn + number) % 2 == 0
            if encode_first:
                encode_s.append(_seconds(encode))
            block[missing] = repair[esi - k]
            decode_s.append(_seconds(decode))
            assert np.array_equal(block[missing], lost)
            if not encode_first:
                encode_s.append(_seconds(encode))
    encode_median_s, decode_median_s = statistics.median(encode_s), statistics.median(decode_s)
    title = f"decode k={k} e={missing_count}, {kernel.name}"
    return [
        _row(title, k * SYMBOL_BYTES / decode_median_s / 1e9, "GB/s"),
        _row(f"{title}: decoding time / encoding time", decode_median_s / encode_median_s, "ratio"),
    ]


def run() -> list[dict[str, object]]:
    """Return one row for each component: name, speed, unit."""
    rng = np.random.default_rng(0)
    blocks = list(rng.integers(0, 256, (BLOCK_COUNT, DECODED_K, SYMBOL_BYTES), dtype=np.uint8))
    rows: list[dict[str, object]] = []
    for kernel in _kernels():
        rows += [_encoding(kernel, k, m, blocks) for k, m in ENCODED]
        for missing_count in MISSING_COUNTS:
            rows += _decoding(kernel, missing_count, blocks)
    return rows
