"""A filesystem as partclone's image, format 2 with CRC32, from the used ranges of a partition."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import MIB
from sender.imaging.foreign.partclone_format import (
    CHECKSUM_BYTES,
    BitmapMode,
    ChecksumMode,
    PartcloneHeader,
    build_header,
    stored_crc,
)

_STRIP_BYTES: Final = MIB
"""Data per checksum, as partclone chooses it."""

_TOOL_VERSION: Final = "0.3.23"
"""Version of partclone whose files these are like."""


def partclone_stream(
    filesystem: str, device_bytes: int, used: NDArray[np.int64], read: Callable[[int, int], bytes]
) -> Iterator[bytes]:
    """Yield the image of a partition in pieces.

    Args:
        filesystem: partclone's name of the filesystem.
        device_bytes: size of the partition, a multiple of 512.
        used: ``int64[n, 2]``: half-open byte ranges that are stored, ascending and disjoint; multiples of
            :func:`block_bytes_of`.
        read: returns bytes of the partition: offset and length.
    """
    block_bytes = block_bytes_of(device_bytes)
    blocks = used // block_bytes
    header = PartcloneHeader(
        version=2,
        tool_version=_TOOL_VERSION,
        filesystem=filesystem,
        device_bytes=device_bytes,
        block_bytes=block_bytes,
        block_count=device_bytes // block_bytes,
        used_block_count=int((blocks[:, 1] - blocks[:, 0]).sum()),
        checksum=ChecksumMode.CRC32,
        blocks_per_checksum=_STRIP_BYTES // block_bytes,
        restarts_checksum=True,
        bitmap_mode=BitmapMode.BIT,
    )
    yield build_header(header)
    bitmap = _bitmap(blocks, header.block_count)
    yield bitmap
    yield _checksum(zlib.crc32(bitmap))
    crc, strip_left = 0, _STRIP_BYTES
    for start, stop in used.tolist():
        position = start
        while position < stop:
            data = read(position, min(strip_left, stop - position))
            crc = zlib.crc32(data, crc)
            yield data
            position += len(data)
            strip_left -= len(data)
            if not strip_left:
                yield _checksum(crc)
                crc, strip_left = 0, _STRIP_BYTES
    if strip_left < _STRIP_BYTES:
        yield _checksum(crc)


def block_bytes_of(device_bytes: int) -> int:
    """Return the block size for a partition, which divides it."""
    return 4096 if device_bytes % 4096 == 0 else 512


def _bitmap(blocks: NDArray[np.int64], block_count: int) -> bytes:
    """Return one bit per block, the first in the lowest bit."""
    bitmap = np.zeros((block_count + 7) // 8, np.uint8)
    for start, stop in blocks.tolist():
        first, last = start // 8, (stop - 1) // 8
        head, tail = 0xFF << start % 8 & 0xFF, 0xFF >> 7 - (stop - 1) % 8
        if first == last:
            bitmap[first] |= head & tail
            continue
        bitmap[first] |= head
        bitmap[first + 1 : last] = 0xFF
        bitmap[last] |= tail
    return bitmap.tobytes()


def _checksum(crc: int) -> bytes:
    return stored_crc(crc).to_bytes(CHECKSUM_BYTES, "little")
