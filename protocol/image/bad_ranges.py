"""Ranges of a source disk that couldn't be read, as a field of an image's metadata with a fixed length.

The length is fixed because the metadata precedes the payload, and bad sectors are only known once all is read.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from protocol.errors import ImageDamagedError

RANGES_MAX: Final = 256
"""Ranges that the metadata lists: 4 KiB. The totals count all of them, and the acquisition report lists them."""

_TOTALS: Final = struct.Struct("<QQ")
_RANGE: Final = struct.Struct("<QQ")
BAD_RANGES_BYTES: Final = _TOTALS.size + RANGES_MAX * _RANGE.size


@dataclasses.dataclass(frozen=True, slots=True)
class BadRange:
    """A range of a disk that couldn't be read, and is zero in the image."""

    offset: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class BadRanges:
    """The unreadable ranges of a disk."""

    range_count: int
    total_bytes: int
    ranges: tuple[BadRange, ...]
    """The first :data:`RANGES_MAX`, ascending and apart from each other."""

    @classmethod
    def of(cls, ranges: Sequence[BadRange]) -> BadRanges:
        """Return the field for ascending ranges that don't touch."""
        return cls(len(ranges), sum(bad.length for bad in ranges), tuple(ranges[:RANGES_MAX]))

    def encode(self) -> bytes:
        """Return the metadata's value."""
        listed = b"".join(_RANGE.pack(bad.offset, bad.length) for bad in self.ranges)
        return (_TOTALS.pack(self.range_count, self.total_bytes) + listed).ljust(BAD_RANGES_BYTES, b"\0")

    @classmethod
    def decode_untrusted(cls, data: object) -> BadRanges:
        """Parse the metadata's value.

        Raises:
            ImageDamagedError: it isn't one that :meth:`encode` returns.
        """
        if not isinstance(data, bytes) or len(data) != BAD_RANGES_BYTES:
            raise ImageDamagedError("the manifest's metadata is damaged: bad_ranges has another length")
        range_count, total_bytes = _TOTALS.unpack_from(data)
        listed_count = min(range_count, RANGES_MAX)
        rows = [
            BadRange(*_RANGE.unpack_from(data, _TOTALS.size + index * _RANGE.size))
            for index in range(listed_count)
        ]
        end = -1
        for bad in rows:
            if bad.offset <= end or not bad.length:
                raise ImageDamagedError("the manifest's metadata is damaged: bad_ranges isn't in order")
            end = bad.offset + bad.length
        listed_bytes = sum(bad.length for bad in rows)
        if any(data[_TOTALS.size + listed_count * _RANGE.size :]) or (
            total_bytes != listed_bytes if range_count <= RANGES_MAX else total_bytes < listed_bytes
        ):
            raise ImageDamagedError("the manifest's metadata is damaged: bad_ranges has wrong totals")
        return cls(range_count, total_bytes, tuple(rows))


def merge_sectors(sectors: Iterable[int], sector_bytes: int, raw_bytes: int) -> list[BadRange]:
    """Return the ranges that the sectors of a disk form, the last one cut to the disk's end."""
    ranges: list[BadRange] = []
    for sector in sorted(sectors):
        offset = sector * sector_bytes
        length = min(sector_bytes, raw_bytes - offset)
        if ranges and ranges[-1].offset + ranges[-1].length == offset:
            ranges[-1] = BadRange(ranges[-1].offset, ranges[-1].length + length)
        else:
            ranges.append(BadRange(offset, length))
    return ranges
