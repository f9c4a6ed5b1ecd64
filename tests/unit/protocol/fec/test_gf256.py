"""The field's arithmetic against schoolbook multiplication: every other FEC test depends on it."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.errors import ProtocolError
from protocol.fec.gf256 import (
    EXP,
    INVERSE,
    LOG,
    POLYNOMIAL,
    cauchy_rows,
    invert_matrix,
    multiply,
    multiply_matrices,
)

ALL = np.arange(256, dtype=np.uint8)


def _long_multiplication(left: int, right: int) -> int:
    product = 0
    for bit in range(8):
        if right >> bit & 1:
            product ^= left << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= POLYNOMIAL << (bit - 8)
    return product


def test_every_product_is_that_of_long_multiplication() -> None:
    expected = [[_long_multiplication(left, right) for right in range(256)] for left in range(256)]
    assert multiply(ALL[:, None], ALL[None, :]).tolist() == expected


def test_every_element_but_zero_has_a_logarithm_and_an_inverse() -> None:
    assert sorted(EXP[:255].tolist()) == list(range(1, 256))
    assert np.array_equal(EXP[LOG[1:]], ALL[1:])
    assert (multiply(ALL[1:], INVERSE[1:]) == 1).all()


def test_matrix_product() -> None:
    rng = np.random.default_rng(1)
    left = rng.integers(0, 256, (5, 7), dtype=np.uint8)
    right = rng.integers(0, 256, (7, 11), dtype=np.uint8)
    products = multiply(left[:, :, None], right[None, :, :])
    assert np.array_equal(multiply_matrices(left, right), np.bitwise_xor.reduce(products, axis=1))


@pytest.mark.parametrize("size", [1, 2, 9, 40])
def test_a_matrix_times_its_inverse_is_the_identity(size: int) -> None:
    rng = np.random.default_rng(size)
    lower = np.tril(rng.integers(0, 256, (size, size), dtype=np.uint8), -1) | np.eye(size, dtype=np.uint8)
    # rows rotated, so that pivots must be searched
    matrix = np.roll(multiply_matrices(lower, lower.T.copy()), 1, axis=0)
    assert np.array_equal(multiply_matrices(matrix, invert_matrix(matrix)), np.eye(size, dtype=np.uint8))


def test_a_singular_matrix_has_no_inverse() -> None:
    with pytest.raises(ProtocolError, match="no inverse"):
        invert_matrix(np.ones((3, 3), np.uint8))


def test_cauchy_coefficients_are_inverses_of_sums_and_do_not_depend_on_the_count() -> None:
    rows = cauchy_rows(100, 100, 155)
    assert (multiply(rows, np.arange(100, 255, dtype=np.uint8)[:, None] ^ ALL[None, :100]) == 1).all()
    assert np.array_equal(rows[20:25], cauchy_rows(100, 120, 5))


def test_square_pieces_of_the_cauchy_matrix_are_invertible() -> None:
    rng = np.random.default_rng(2)
    for size in (1, 2, 3, 8, 31):
        rows = rng.permutation(31)[:size]
        columns = rng.permutation(224)[:size]
        invert_matrix(cauchy_rows(224, 224, 31)[np.ix_(rows, columns)])
