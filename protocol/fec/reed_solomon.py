"""Encoding and decoding of a block: systematic Reed-Solomon with Cauchy coefficients, any k of n symbols suffice.

Decoding in one multiplication. Repair symbol r is ``c(r) = sum over j of s(j) / (r + j)``: multiplied by the product
of all ``(r + j)`` it is a polynomial in r of degree below k, whose value at a source index j is ``s(j)`` times a
constant. The code is thus a generalised Reed-Solomon code, and a missing source symbol is found by Lagrange
interpolation. Let M be the missing source indices, R as many available repair symbols, X all available symbols:

    s(m) = sum over x in X of  a(m) b(x) / (m + x) * symbol(x)
    b(x) = product over M of (x + m')  /  product over R without x of (x + r)
    a(m) = product over R of (m + r)   /  product over M without m of (m + m')

This equals eliminating the known symbols from the repair symbols and multiplying by the inverse of the Cauchy
submatrix of R and M (Blömer et al., ICSI TR-95-048, section 4), but costs one row of k coefficients for each
missing symbol: exactly as much as encoding that many, and no matrix is inverted. With the convention log 0 = 0
both products are one sum of logarithms, ``f(x) = sum over M of log(x + m) - sum over R of log(x + r)``:
``log b(x) = f(x)`` and ``log a(m) = -f(m)``.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import SOURCE_SYMBOLS_MAX, SYMBOLS_MAX
from protocol.errors import DecodeError, ProtocolError
from protocol.fec.gf256 import LOG, ORDER, Kernel
from protocol.fec.isal import best_kernel

_ESI: Final = np.arange(256, dtype=np.uint8)
_LOG_SUM: Final = LOG[_ESI[:, None] ^ _ESI[None, :]]
"""``int16[256, 256]``: log(x + y), 0 where x = y."""


def encode_repair(
    source: NDArray[np.uint8], esi_start: int, out: NDArray[np.uint8], *, kernel: Kernel | None = None
) -> None:
    """Compute the repair symbols ``esi_start`` to ``esi_start + m`` of a block.

    Thread-safe. Costs m * k * symbol_bytes multiplications in the field, without the GIL if the kernel is ISA-L.

    Args:
        source: ``uint8[k, symbol_bytes]``, the block's source symbols; rows may lie apart (``frames[:, 32:]``), but the
            bytes of a row must be contiguous.
        esi_start: at least ``k``; ``esi_start + m`` is at most 255.
        out: ``uint8[m, symbol_bytes]``, filled; rows as in ``source``, with which it shares no memory.
        kernel: None for :func:`best_kernel`.

    Raises:
        ProtocolError: shapes, types or the range of esi are wrong.
    """
    if not (_rows_usable(source) and _rows_usable(out) and source.shape[1] == out.shape[1]):
        raise ProtocolError(
            f"symbols {source.dtype}{source.shape} can't be encoded into {out.dtype}{out.shape}: "
            "both must be rows of the same number of contiguous bytes"
        )
    if not out.flags.writeable:
        raise ProtocolError("repair symbols can't be written into a read-only array")
    k = source.shape[0]
    count = out.shape[0]
    if not 0 < k <= SOURCE_SYMBOLS_MAX or not k <= esi_start <= esi_start + count <= SYMBOLS_MAX:
        raise ProtocolError(f"no repair symbols {esi_start} to {esi_start + count} exist for k = {k}")
    if count:
        kernel = kernel or best_kernel()
        kernel.multiply(_encoding_tables(kernel, k, esi_start, count), source, out)


# A run of compressed blocks of varying k uses about 64 tables; the largest (k = 128, all 127 repair symbols) has
# 520 KB, the usual one a fifth of that, and computing one again adds a tenth to an encoding.
@functools.lru_cache(maxsize=64)
def _encoding_tables(kernel: Kernel, k: int, esi_start: int, count: int) -> NDArray[np.uint8]:
    return kernel.expand(ORDER - _LOG_SUM[esi_start : esi_start + count, :k])


def decode_in_place(
    slots: NDArray[np.uint8], slot_esi: NDArray[np.uint8], *, kernel: Kernel | None = None
) -> None:
    """Recover a block's missing source symbols from the repair symbols in their places.

    Thread-safe for distinct blocks. Costs e * k * symbol_bytes multiplications for e missing symbols: nothing when
    none is missing, otherwise as much as encoding e repair symbols, and 10 to 20 us of preparation.

    Args:
        slots: ``uint8[k, symbol_bytes]``; ``slots[i]`` holds the encoding symbol ``slot_esi[i]``. A source symbol is in
            the slot of its own number; the slot of a missing one holds any repair symbol. Afterwards ``slots[j]`` is
            source symbol j for every j.
        slot_esi: ``uint8[k]``; afterwards ``slot_esi[j] == j``.
        kernel: None for :func:`best_kernel`.

    Raises:
        DecodeError: an esi occurs twice, a source symbol is in another's slot, a slot is empty (``ESI_NONE``), or
            shapes or types are wrong; nothing was changed.
    """
    if not _rows_usable(slots) or not 0 < len(slots) <= SOURCE_SYMBOLS_MAX:
        raise DecodeError(
            f"slots {slots.dtype}{slots.shape} aren't 1 to {SOURCE_SYMBOLS_MAX} rows of contiguous bytes"
        )
    k = len(slots)
    if slot_esi.shape != (k,) or slot_esi.dtype != np.uint8:
        raise DecodeError(f"slot_esi {slot_esi.dtype}{slot_esi.shape} doesn't describe {k} slots")
    if not slots.flags.writeable or not slot_esi.flags.writeable:
        raise DecodeError("a block can't be decoded in a read-only array")
    missing = (slot_esi != _ESI[:k]).nonzero()[0]
    if missing.size == 0:
        return
    repair = slot_esi[missing]
    _check_repair(missing, repair, k)
    kernel = kernel or best_kernel()
    recovered = np.empty((missing.size, slots.shape[1]), np.uint8)
    kernel.multiply(kernel.expand(_decoding_logarithms(missing, repair, slot_esi)), slots, recovered)
    slots[missing] = recovered
    slot_esi[missing] = missing


def _rows_usable(rows: NDArray[np.uint8]) -> bool:
    """Return whether a kernel can work on these rows by their addresses."""
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] == 0:
        return False
    return rows.strides[1] == 1 or len(rows) == 0  # numpy gives empty arrays any strides


def _check_repair(missing: NDArray[np.intp], repair: NDArray[np.uint8], k: int) -> None:
    """Raise :class:`DecodeError` unless the slots of missing symbols hold distinct repair symbols."""
    # bytes, since min, max and set of a few of them are faster than numpy's
    values = repair.tobytes()
    if min(values) < k or max(values) >= SYMBOLS_MAX or len(set(values)) != len(values):
        raise DecodeError(
            f"slots {missing.tolist()} hold symbols {list(values)}: each must hold another repair symbol, "
            f"{k} to {SYMBOLS_MAX - 1}, or its own source symbol"
        )


def _decoding_logarithms(
    missing: NDArray[np.intp], repair: NDArray[np.uint8], slot_esi: NDArray[np.uint8]
) -> NDArray[np.int16]:
    """Return logarithms of a(m) b(x) / (m + x), ``int16[e, k]`` in ``range(LOGARITHM_SPAN)``; see the module.

    This is the cost of a decode beyond its multiplication (6 us for one missing symbol, 11 us for 18), hence 16 bits:
    f fits them, since at most 127 symbols can be missing and replaced, and 127 * 254 < 2^15. ``take`` is several times
    as fast as ``[]`` on so few rows.
    """
    log_missing = _LOG_SUM.take(missing, axis=0)
    f = np.add.reduce(log_missing - _LOG_SUM.take(repair, axis=0), axis=0, dtype=np.int16)
    f %= ORDER
    logarithms: NDArray[np.int16] = f - log_missing
    logarithms += (2 * ORDER - f.take(missing))[:, None]
    return logarithms.take(slot_esi, axis=1)
