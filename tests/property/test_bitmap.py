"""The bitmaps of demoted and dropped receivers: a wrong bit would silence the wrong machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import RECEIVER_COUNT_MAX
from protocol.wire.bitmap import bitmap_holds, bitmap_of
from protocol.wire.messages import Standing

NUMBERS = st.sets(st.integers(0, RECEIVER_COUNT_MAX - 1))


@given(NUMBERS)
def test_a_bitmap_holds_its_numbers_and_no_others(numbers: set[int]) -> None:
    bitmap = bitmap_of(numbers)
    assert {number for number in range(RECEIVER_COUNT_MAX + 16) if bitmap_holds(bitmap, number)} == numbers


@given(NUMBERS)
def test_equal_sets_are_equal_bytes_that_the_wire_takes(numbers: set[int]) -> None:
    """Bitmaps are compared to notice changes of STANDING."""
    bitmap = bitmap_of(numbers)
    assert bitmap == bitmap_of(sorted(numbers, reverse=True))
    assert not bitmap.endswith(b"\0")
    for field in Standing.FIELDS:
        field.kind.check(field.name, bitmap)


@given(st.binary(max_size=200), st.integers(0, 4096))
def test_any_bytes_are_a_set(data: bytes, number: int) -> None:
    """Bitmaps come from the network: none may crash a receiver."""
    held = {n for n in range(8 * len(data)) if bitmap_holds(data, n)}
    assert bitmap_holds(data, number) == (number in held)
    assert bitmap_of(held) == data.rstrip(b"\0")
