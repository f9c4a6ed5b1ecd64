"""Pure reader of partclone's images: verified data of a partition, and the blocks that its filesystem uses.

The image arrives as a stream, as a decompressor writes it; nothing is sought. Memory is bounded by the bitmap, one bit
per block as far as it has arrived, and buffers of a few MiB.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.constants import IMAGE_BYTES_MAX, MIB
from protocol.errors import ForeignImageError
from sender.imaging.foreign.partclone_format import (
    BITMAP_END_V1,
    CHECKSUM_BYTES,
    HEADER_START_BYTES,
    BitmapMode,
    ChecksumMode,
    PartcloneHeader,
    header_bytes_untrusted,
    parse_header_untrusted,
    stored_crc,
)

_CHUNK_BYTES: Final = 4 * MIB
"""Data between two calls of the consumer: large enough for the cost of a call, small enough for the CPU's cache."""

_BITMAP_SLICE_BYTES: Final = 128 * 1024
"""Bitmap that is unpacked at a time: 1 MiB as one byte per block."""


class ByteStream(Protocol):
    """A source of bytes in order, such as the output of a decompressor."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read some bytes into ``buffer`` and return the count; 0 at the end."""


class PartcloneReader:
    """One image that is being read.

    Attributes:
        header: the header, checked.
    """

    def __init__(self, stream: ByteStream, name: str, device_bytes_max: int = IMAGE_BYTES_MAX) -> None:
        """Read the header and the bitmap.

        Args:
            stream: the image, decompressed.
            name: the file's name for messages.
            device_bytes_max: largest partition; a larger one is refused before its bitmap takes memory.

        Raises:
            ForeignImageError: it is truncated, altered or contradicts itself, and the message names file and offset;
                or it isn't a partclone image, or has a feature that isn't supported.
        """
        self._stream = stream
        self._name = name
        self._offset = 0
        start = self._take(HEADER_START_BYTES, "header")
        rest = self._take(header_bytes_untrusted(start, name) - len(start), "header")
        self.header: PartcloneHeader = parse_header_untrusted(start + rest, name)
        if self.header.device_bytes > device_bytes_max:
            raise ForeignImageError(
                f"{name}: a filesystem of {self.header.device_bytes} bytes where {device_bytes_max} fit: files of "
                "different images are mixed, or the disk is larger than --max-size"
            )
        self._bitmap = self._read_bitmap()
        self._check_used_blocks()

    def used_ranges(self) -> Iterator[NDArray[np.int64]]:
        """Yield the byte ranges of the partition that are present: ``int64[n, 2]``, half-open, ascending.

        A range may start at the stop of the one before.
        """
        if self.header.bitmap_mode is BitmapMode.NONE:
            yield np.array([[0, self.header.block_count * self.header.block_bytes]], np.int64)
            return
        for first_block, bits in self._bitmap_slices():
            edges = np.diff(bits, prepend=np.uint8(0), append=np.uint8(0))
            blocks = np.flatnonzero(edges).reshape(-1, 2) + first_block
            yield blocks * self.header.block_bytes

    def runs_untrusted(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the data in order: an offset in the partition, and bytes that are valid until the next run.

        Data of a checksum interval of more than 4 MiB is yielded before its checksum was read: don't rely on anything
        before the iterator ends without an error.

        Raises:
            ForeignImageError: a checksum is wrong, or the file is too short or too long.
        """
        ranges = self._range_pairs()
        start = stop = 0
        for chunk in self._chunks():
            position = 0
            while position < len(chunk):
                if start == stop:
                    start, stop = next(ranges)
                count = min(stop - start, len(chunk) - position)
                yield start, chunk[position : position + count]
                position += count
                start += count

    def _range_pairs(self) -> Iterator[tuple[int, int]]:
        for ranges in self.used_ranges():
            yield from ranges.tolist()

    # -- bitmap -----------------------------------------------------------------------------------------------

    def _read_bitmap(self) -> bytearray:
        """Read the bitmap, as one bit per block; empty if every block is present."""
        count = self.header.block_count
        if self.header.bitmap_mode is BitmapMode.NONE:
            return bytearray()
        is_bytes = self.header.bitmap_mode is BitmapMode.BYTE
        left = count if is_bytes else (count + 7) // 8
        bitmap = bytearray()
        while (
            left
        ):  # in pieces: a header that announces a large bitmap costs no memory before the bitmap arrives
            data = self._take(min(left, _CHUNK_BYTES), "bitmap")
            left -= len(data)
            if is_bytes:  # partclone takes any other number for an absent block
                data = np.packbits(np.frombuffer(data, np.uint8) == 1, bitorder="little").tobytes()
            bitmap += data
        at = self._offset
        if self.header.version == 1:
            if self._take(len(BITMAP_END_V1), "bitmap") != BITMAP_END_V1:
                raise self._damaged(at, "the bitmap doesn't end with partclone's signature")
        elif self._take(CHECKSUM_BYTES, "bitmap") != _checksum(zlib.crc32(bitmap)):
            raise self._damaged(at, "the bitmap before it doesn't match its checksum")
        return bitmap

    def _bitmap_slices(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the number of a first block, and one byte per block from there: 1 if it is present."""
        count = self.header.block_count
        step = 8 * _BITMAP_SLICE_BYTES
        for first_block in range(0, count, step):
            length = min(step, count - first_block)
            packed = np.frombuffer(self._bitmap, np.uint8, (length + 7) // 8, first_block // 8)
            yield first_block, np.unpackbits(packed, count=length, bitorder="little")

    def _check_used_blocks(self) -> None:
        if self.header.bitmap_mode is BitmapMode.NONE:
            self._used_block_count = self.header.block_count
            return
        self._used_block_count = sum(int(bits.sum()) for _, bits in self._bitmap_slices())
        if self.header.version == 1:  # has the filesystem's own count, which partclone doesn't rely on either
            return
        if self._used_block_count != self.header.used_block_count:
            raise self._damaged(
                self._offset,
                f"the bitmap before it has {self._used_block_count} used blocks, but the header announces "
                f"{self.header.used_block_count}",
            )

    # -- data -------------------------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[memoryview]:
        """Yield the data without the checksums."""
        data_bytes = self._used_block_count * self.header.block_bytes
        strip_bytes = self.header.blocks_per_checksum * self.header.block_bytes
        if self.header.checksum is ChecksumMode.NONE:
            yield from self._plain_chunks(data_bytes)
        elif strip_bytes > _CHUNK_BYTES:
            yield from self._long_strips(data_bytes, strip_bytes)
        else:
            yield from self._short_strips(data_bytes, strip_bytes)
        if self._stream.readinto(memoryview(bytearray(1))):
            raise self._damaged(self._offset, "data follows where the image should end")

    def _plain_chunks(self, data_bytes: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, data_bytes)))
        for start in range(0, data_bytes, _CHUNK_BYTES):
            chunk = buffer[: data_bytes - start]
            self._fill(chunk, "data")
            yield chunk

    def _long_strips(self, data_bytes: int, strip_bytes: int) -> Iterator[memoryview]:
        """Yield chunks of intervals that don't fit a buffer; only format 2 has such."""
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, data_bytes)))
        crc = 0
        for strip_start in range(0, data_bytes, strip_bytes):
            at = self._offset
            if self.header.restarts_checksum:
                crc = 0
            left = min(strip_bytes, data_bytes - strip_start)
            while left:
                chunk = buffer[:left]
                self._fill(chunk, "data")
                crc = zlib.crc32(chunk, crc)
                left -= len(chunk)
                yield chunk
            if self._take(CHECKSUM_BYTES, "data") != _checksum(crc):
                raise self._wrong_checksum(at, self._offset)

    def _short_strips(self, data_bytes: int, strip_bytes: int) -> Iterator[memoryview]:
        """Yield chunks of whole intervals; one chunk has as many as fit a buffer."""
        strip_count, last_bytes = divmod(data_bytes, strip_bytes)
        stored_bytes = strip_bytes + CHECKSUM_BYTES
        per_chunk = min(max(1, _CHUNK_BYTES // stored_bytes), max(1, strip_count))
        buffer = np.empty(per_chunk * stored_bytes, np.uint8)
        data = np.empty(per_chunk * strip_bytes, np.uint8) if per_chunk > 1 else None
        crc = 0
        for first in range(0, strip_count, per_chunk):
            count = min(per_chunk, strip_count - first)
            stored = buffer[: count * stored_bytes]
            at = self._offset
            self._fill(stored.data, "data")
            crc = self._check_strips(stored.data, strip_bytes, crc, at)
            if data is None:
                yield stored[:strip_bytes].data
                continue
            chunk = data[: count * strip_bytes]
            chunk.reshape(count, strip_bytes)[:] = stored.reshape(count, stored_bytes)[:, :strip_bytes]
            yield chunk.data
        if last_bytes:
            stored = np.empty(last_bytes + CHECKSUM_BYTES, np.uint8)
            at = self._offset
            self._fill(stored.data, "data")
            self._check_strips(stored.data, last_bytes, crc, at)
            yield stored[:last_bytes].data

    def _check_strips(self, stored: memoryview, strip_bytes: int, crc: int, at: int) -> int:
        """Check the checksum behind each interval, and return the last one's state."""
        is_first_bytes = self.header.checksum is ChecksumMode.FIRST_BYTES
        for start in range(0, len(stored), strip_bytes + CHECKSUM_BYTES):
            stop = start + strip_bytes
            covered: memoryview | bytes = stored[start:stop]
            if is_first_bytes:
                covered = bytes(covered[:1]) * strip_bytes
            crc = zlib.crc32(covered, 0 if self.header.restarts_checksum else crc)
            if stored[stop : stop + CHECKSUM_BYTES] != _checksum(crc):
                raise self._wrong_checksum(at + start, at + stop)
        return crc

    # -- the stream -------------------------------------------------------------------------------------------

    def _take(self, length: int, part: str) -> bytes:
        data = bytearray(length)
        self._fill(memoryview(data), part)
        return bytes(data)

    def _fill(self, buffer: memoryview, part: str) -> None:
        position = 0
        while position < len(buffer):
            count = self._stream.readinto(buffer[position:])
            if not count:
                raise self._damaged(self._offset + position, f"the image ends in the middle of its {part}")
            position += count
        self._offset += position

    def _wrong_checksum(self, start: int, stop: int) -> ForeignImageError:
        covered = "" if self.header.restarts_checksum else ", which also covers the data before"
        return self._damaged(
            start, f"the {stop - start} bytes from there don't match their checksum{covered}"
        )

    def _damaged(self, offset: int, problem: str) -> ForeignImageError:
        return ForeignImageError(
            f"{self._name}: damaged at offset {offset} of the partclone image: {problem}; take another copy of the file"
        )


def _checksum(crc: int) -> bytes:
    return stored_crc(crc).to_bytes(CHECKSUM_BYTES, "little")
