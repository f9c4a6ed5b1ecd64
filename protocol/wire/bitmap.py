"""Sets of small numbers as bytes, the way :class:`protocol.schema.binary_fields.Bitmap` carries them."""

from __future__ import annotations

from collections.abc import Iterable


def bitmap_of(numbers: Iterable[int]) -> bytes:
    """The bitmap that holds ``numbers``, without bytes of zeros at its end."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits.to_bytes(-(-bits.bit_length() // 8), "little")


def bitmap_holds(bitmap: bytes, number: int) -> bool:
    """Whether ``number`` is in the set."""
    index = number // 8
    return index < len(bitmap) and bool(bitmap[index] >> number % 8 & 1)
