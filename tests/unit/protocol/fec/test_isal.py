"""The ISA-L binding: a copy that computes other symbols would silently corrupt every block with a lost datagram."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.errors import MissingDependencyError
from protocol.fec import isal
from protocol.fec.gf256 import EXP, LOGARITHM_SPAN, NumpyKernel, cauchy_rows, multiply_matrices
from protocol.fec.isal import IsalKernel
from tests.support.programs.fec_kernels import ISAL_KERNELS

BUNDLED = [(library, name) for library, name in isal.libraries() if "pyeclib" in name]


def test_the_installed_dependency_carries_a_usable_copy() -> None:
    assert BUNDLED, "a machine without the system's library would fall back to numpy"
    assert IsalKernel(*BUNDLED[0]).name == "isal (bundled with pyeclib)"


@pytest.mark.parametrize("kernel", ISAL_KERNELS)
def test_products_agree_with_the_oracle(kernel: IsalKernel) -> None:
    """The symbols are right for every mixture of vector widths, tails and numbers of rows."""
    rng = np.random.default_rng(3)
    for symbol_bytes in (1, 15, 16, 31, 33, 63, 64, 65, 127, 191, 1000, 1440, 8928):
        for rows, k in ((1, 1), (2, 3), (3, 224), (4, 2), (5, 9), (6, 4), (7, 31), (31, 5)):
            logarithms = rng.integers(0, LOGARITHM_SPAN, (rows, k), dtype=np.int16)
            source = rng.integers(0, 256, (k, symbol_bytes), dtype=np.uint8)
            out = np.zeros((rows, symbol_bytes), np.uint8)
            kernel.multiply(kernel.expand(logarithms), source, out)
            assert np.array_equal(out, multiply_matrices(EXP[logarithms], source)), (symbol_bytes, rows, k)


@pytest.mark.parametrize(("library", "name"), BUNDLED)
def test_coefficients_are_those_that_isal_itself_makes(library: str, name: str) -> None:
    """Another program with ISA-L's Cauchy matrix decodes the repair symbols."""
    generate = ctypes.CDLL(library).gf_gen_cauchy1_matrix
    generate.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    generate.restype = None
    matrix = np.zeros((255, 182), np.uint8)
    generate(matrix.ctypes.data, 255, 182)
    assert np.array_equal(matrix[182:], cauchy_rows(182, 182, 73))


@pytest.mark.parametrize("library", ["libdiskcast-absent.so.9", "libc.so.6"])
def test_a_library_that_is_absent_or_something_else_is_refused(library: str) -> None:
    with pytest.raises(MissingDependencyError, match=library):
        IsalKernel(library, "isal")


def test_a_library_that_computes_something_else_is_refused() -> None:
    class OffByOne(IsalKernel):
        def _tables_by_logarithm(self) -> NDArray[np.uint8]:
            tables = super()._tables_by_logarithm()
            tables[77::255] = tables[78]
            return tables

    with pytest.raises(MissingDependencyError, match="computes other symbols"):
        OffByOne(*BUNDLED[0])


def test_without_any_library_numpy_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ("libdiskcast-absent.so.9", "isal")
    monkeypatch.setattr(isal, "libraries", lambda: iter([absent]))
    assert isinstance(isal.best_kernel.__wrapped__(), NumpyKernel)


def test_the_kernel_is_named_for_the_doctor() -> None:
    assert isal.best_kernel().name in {name for _, name in isal.libraries()}
    assert isal.best_kernel() is isal.best_kernel()
