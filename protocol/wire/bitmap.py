"""Sets of small numbers as bytes, in the format of :class:`protocol.schema.binary_fields.Bitmap`."""

from __future__ import annotations

from collections.abc import Iterable


def bitmap_of(numbers: Iterable[int]) -> bytes:
    """Return the bitmap of ``numbers``, without trailing zero bytes."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits.to_bytes(-(-bits.bit_length() // 8), "little")


def bitmap_holds(bitmap: bytes, number: int) -> bool:
    """Return whether ``number`` is in the set."""
    index = number // 8
    return index < len(bitmap) and bool(bitmap[index] >> number % 8 & 1)
