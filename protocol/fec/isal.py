"""Intel ISA-L through ctypes: search for a working copy, and multiplication of numpy rows without copying them.

``ctypes`` releases the GIL during a foreign call: blocks are encoded and decoded on several cores.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.errors import MissingDependencyError
from protocol.fec.gf256 import EXP, ORDER, Kernel, NumpyKernel, multiply_matrices

_TABLE_BYTES_MAX: Final = 32
"""Table of one coefficient: two nibble tables of 16 products; with GFNI, copies of an 8 x 8 bit matrix."""

_INDEX: Final = np.arange(256, dtype=np.int64)


class IsalKernel:
    """Kernel of ISA-L's ``ec_encode_data``; the table of every coefficient is prepared once.

    Gathering prepared tables by coefficient is four times as fast as ``ec_init_tables`` (18 x 182 coefficients:
    5 against 16 to 26 us), and a decoder needs new tables for every set of missing symbols.
    """

    def __init__(self, library: str, name: str) -> None:
        """Load ``library`` (a path or a name for the dynamic linker) and check the symbols that it computes.

        Raises:
            MissingDependencyError: it can't be loaded, isn't ISA-L, or computes other symbols.
        """
        self.name = name
        try:
            loaded = ctypes.CDLL(library)
            self._init_tables = loaded.ec_init_tables
            self._encode_data = loaded.ec_encode_data
        except (OSError, AttributeError) as error:
            raise MissingDependencyError(
                f"ISA-L can't be used from {library}: {error}; install libisal2 or pyeclib"
            ) from error
        self._init_tables.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        self._init_tables.restype = None
        self._encode_data.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 3
        self._encode_data.restype = None
        self._tables = self._tables_by_logarithm()
        if self._tables.size == 0 or not self._agrees_with_oracle():
            raise MissingDependencyError(
                f"ISA-L from {library} computes other symbols than it should: replace it"
            )

    def _tables_by_logarithm(self) -> NDArray[np.uint8]:
        """Return every coefficient's table for ``ec_encode_data`` on this processor, ``[LOGARITHM_SPAN, bytes]``.

        Since version 2.31 the layout depends on the processor. The library reveals it: the bytes that it writes are
        the same for two differently filled buffers. Empty if the size isn't the same for every coefficient.
        """
        prepared = []
        for fill in (0x00, 0xFF):
            tables = np.full(ORDER * _TABLE_BYTES_MAX, fill, np.uint8)
            self._init_tables(ORDER, 1, EXP.ctypes.data, tables.ctypes.data)
            prepared.append(tables)
        written_bytes = int(np.count_nonzero(prepared[0] == prepared[1]))
        if written_bytes % ORDER:
            return np.empty((0, 0), np.uint8)
        by_exponent = prepared[0][:written_bytes].reshape(ORDER, written_bytes // ORDER)
        return np.tile(by_exponent, (3, 1))

    def _agrees_with_oracle(self) -> bool:
        """Compare with numpy where ISA-L's code paths differ: one to six rows at once, whole vectors or not."""
        rng = np.random.default_rng(0)
        cases = ((1, 2, 64), (2, 17, 96), (3, 5, 100), (4, 4, 127), (5, 51, 65), (12, 9, 1440))
        for rows, k, symbol_bytes in cases:
            # 5 x 51 covers every coefficient
            logarithms = np.resize(rng.permutation(ORDER), (rows, k)).astype(np.int16)
            source = rng.integers(0, 256, (k, symbol_bytes), dtype=np.uint8)
            out = np.zeros((rows, symbol_bytes), np.uint8)
            self.multiply(self.expand(logarithms), source, out)
            if not np.array_equal(out, multiply_matrices(EXP[logarithms], source)):
                return False
        return True

    def expand(self, logarithms: NDArray[np.int16]) -> NDArray[np.uint8]:
        """Return ISA-L's tables, ``uint8[rows, k, table_bytes]``, contiguous."""
        return self._tables.take(logarithms, axis=0)

    def multiply(self, tables: NDArray[np.uint8], source: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Compute ``out = coefficients x source``, as in :class:`protocol.fec.gf256.Kernel`; shapes aren't checked."""
        rows, symbol_bytes = out.shape
        source_pointers = _row_pointers(source)
        out_pointers = _row_pointers(out)
        self._encode_data(
            symbol_bytes,
            source.shape[0],
            rows,
            tables.ctypes.data,
            source_pointers.ctypes.data,
            out_pointers.ctypes.data,
        )


def _row_pointers(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the address of each row, as an array of C pointers."""
    pointers = _INDEX[: rows.shape[0]] * rows.strides[0]
    pointers += rows.ctypes.data
    return pointers


def libraries() -> Iterator[tuple[str, str]]:
    """Yield the places of ISA-L as ``(library, name for people)``, the preferred first.

    The distribution maintains the system's copy; the pyeclib wheel contains its own for x86_64 and aarch64.
    """
    yield "libisal.so.2", "isal (system libisal.so.2)"
    pyeclib = importlib.util.find_spec("pyeclib")
    if pyeclib is not None and pyeclib.origin is not None:
        for path in sorted(Path(pyeclib.origin).parents[1].glob("pyeclib.libs/libisal*.so*")):
            yield str(path), "isal (bundled with pyeclib)"


@functools.cache
def best_kernel() -> Kernel:
    """Return the kernel of this machine, chosen once: the first usable ISA-L, else numpy."""
    for library, name in libraries():
        try:
            return IsalKernel(library, name)
        except MissingDependencyError:
            continue
    return NumpyKernel()
