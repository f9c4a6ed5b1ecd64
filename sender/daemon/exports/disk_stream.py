"""The disk of an image as a stream of bytes that starts anywhere: raw, or compressed by zstd, without a temporary file.

A block is stored as a frame of zstd, and a file of zstd is a sequence of frames. The compressed stream is therefore the
image's own stored blocks, and frames for the others: its length and the place of every block are known beforehand, and
nothing is compressed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import KIB
from protocol.image.manifest import BlockKind
from sender.imaging.image_file import ImageFile
from sender.imaging.verified_blocks import VerifiedBlocks

_ZSTD_MAGIC: Final = 0xFD2FB528
_SINGLE_SEGMENT_SIZE_4: Final = 0b1010_0000
"""Frame header descriptor (RFC 8878, 3.1.1.1.1): a content size of four bytes, which is the window too."""
_FRAME_HEADER_BYTES: Final = 9
_BLOCK_HEADER_BYTES: Final = 3
_BLOCK_RAW: Final = 0
_BLOCK_REPEATED_BYTE: Final = 1
_ZSTD_BLOCK_BYTES_MAX: Final = 128 * KIB


class StreamFormat(enum.StrEnum):
    """The form of the stream; the value is the usual ending of file names."""

    RAW = "raw"
    RAW_ZST = "raw.zst"


class DiskStream:
    """The stream of an open image; each block is checked against its hashes before a byte of it is returned."""

    def __init__(self, image: ImageFile, kind: StreamFormat) -> None:
        self._manifest = image.manifest
        self._blocks = VerifiedBlocks(image)
        self._kind = kind
        lengths = self._lengths()
        self._starts: NDArray[np.int64] = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))

    @property
    def total_bytes(self) -> int:
        """Length of the whole stream."""
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a range of the stream, a block at a time. Blocks.

        Raises:
            ImageDamagedError: a block doesn't match its hashes.
            ImageChangedError: the file was altered since it was opened.
            StorageError: the disk failed.
        """
        block = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            block_start, block_stop = self._starts[block : block + 2].tolist()
            end = min(stop, block_stop)
            yield memoryview(self._piece(block))[start - block_start : end - block_start]
            start, block = end, block + 1

    def _lengths(self) -> NDArray[np.int64]:
        manifest = self._manifest
        lengths = np.full(manifest.block_count, manifest.block_bytes, np.int64)
        if len(lengths):
            lengths[-1] = manifest.raw_length(manifest.block_count - 1)
        if self._kind is StreamFormat.RAW:
            return lengths
        counts = -(-lengths // _ZSTD_BLOCK_BYTES_MAX)
        frames = np.where(
            manifest.kind == BlockKind.RAW,
            _FRAME_HEADER_BYTES + _BLOCK_HEADER_BYTES * counts + lengths,
            _FRAME_HEADER_BYTES + (_BLOCK_HEADER_BYTES + 1) * counts,
        )
        stored: NDArray[np.int64] = np.where(
            manifest.kind == BlockKind.DATA, manifest.stored_bytes.astype(np.int64), frames
        )
        return stored

    def _piece(self, block: int) -> bytes | memoryview:
        if self._kind is StreamFormat.RAW:
            return self._blocks.read(block)
        kind = BlockKind(int(self._manifest.kind[block]))
        if kind is BlockKind.DATA:
            return self._blocks.read_stored(block)
        if kind is BlockKind.RAW:
            return _frame(self._blocks.read(block), repeated=False)
        return _frame(bytes(self._manifest.raw_length(block)), repeated=True)


def _frame(raw: bytes | memoryview, *, repeated: bool) -> bytes:
    """Return a frame whose blocks aren't compressed, or repeat the first byte of ``raw``."""
    frame = bytearray(_ZSTD_MAGIC.to_bytes(4, "little"))
    frame.append(_SINGLE_SEGMENT_SIZE_4)
    frame += len(raw).to_bytes(4, "little")
    kind = _BLOCK_REPEATED_BYTE if repeated else _BLOCK_RAW
    for start in range(0, len(raw), _ZSTD_BLOCK_BYTES_MAX):
        content = raw[start : start + _ZSTD_BLOCK_BYTES_MAX]
        is_last = start + _ZSTD_BLOCK_BYTES_MAX >= len(raw)
        frame += (is_last | kind << 1 | len(content) << 3).to_bytes(_BLOCK_HEADER_BYTES, "little")
        frame += content[:1] if repeated else content
    return bytes(frame)
