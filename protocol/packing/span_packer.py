"""Blocks of a disk as spans: read, tested for zeros, compressed and hashed while a span is in the CPU's cache."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES, MIB
from protocol.image.block_codec import BlockEncoder, block_hash, encoder_memory_bytes, zero_hash
from protocol.image.manifest import BlockKind
from protocol.image.manifest_format import block_count_of
from protocol.packing.ordered_pipeline import SPAN_BYTES, job_count
from protocol.packing.source import Source

ENCODER_BYTES_MAX: Final = 160 * MIB
"""Limit of all encoders together: 2 of the largest (level 22, 4 MiB blocks), or one per span buffer at usual levels."""

_EMPTY_BLOCKS_MAX: Final = 1 << 16
"""Blocks of a hole or of free space per write of manifest rows: 4.5 MB."""


def packer_job_count(jobs: int | None, *, level: int, block_bytes: int) -> int:
    """Return the number of threads that pack: as :func:`job_count`, with all encoders in their memory limit."""
    return min(job_count(jobs), max(1, ENCODER_BYTES_MAX // encoder_memory_bytes(level, block_bytes)))


@dataclasses.dataclass(frozen=True, slots=True)
class BlockSpan:
    """Consecutive blocks: to read, or all ZERO because they are a hole, or all UNUSED."""

    first_block: int
    block_count: int
    empty_kind: BlockKind | None = None
    """The kind of all blocks; None for blocks to read."""


@dataclasses.dataclass(frozen=True, slots=True)
class PackedSpan:
    """Manifest rows of a span, with its raw and stored bytes, which may be in the span's buffer."""

    span: BlockSpan
    kind: NDArray[np.uint8]
    stored_bytes: NDArray[np.uint32]
    stored_hash: bytes
    raw_hash: bytes
    payload: list[bytes | memoryview]
    raw: memoryview
    """Empty if nothing was read."""


class SpanPacker:
    """A packer that cuts the source into spans; :meth:`work` runs in many threads at once."""

    def __init__(
        self,
        source: Source,
        unused: NDArray[np.int64],
        *,
        block_bytes: int,
        level: int,
        every_byte: bool = False,
    ) -> None:
        """Args:
        source: the disk.
        unused: ``int64[n, 2]``: blocks to leave out, ascending half-open ranges.
        block_bytes: size of a block.
        level: zstd compression level.
        every_byte: holes become spans as small as those of data, since the caller hashes them.
        """
        self._source = source
        self._unused = unused
        self._block_bytes = block_bytes
        self._block_count = block_count_of(source.raw_bytes, block_bytes)
        self._level = level
        self._every_byte = every_byte
        self._thread_local = threading.local()

    def raw_range(self, span: BlockSpan) -> tuple[int, int]:
        """Return the half-open range of the disk that ``span`` covers."""
        start = span.first_block * self._block_bytes
        return start, min(self._source.raw_bytes, start + span.block_count * self._block_bytes)

    def spans(self, first_block: int = 0) -> Iterator[BlockSpan]:
        """Yield all blocks from ``first_block`` on, in order; a block with any data is read completely."""
        blocks_per_span = SPAN_BYTES // self._block_bytes
        # With every_byte holes are hashed too: in small steps, so that progress is visible.
        empty_step = blocks_per_span if self._every_byte else _EMPTY_BLOCKS_MAX
        for first, stop, empty_kind in self._without_unused(self._data_and_holes()):
            step = blocks_per_span if empty_kind is None else empty_step
            for block in range(max(first, first_block), stop, step):
                span = BlockSpan(block, min(step, stop - block), empty_kind)
                if empty_kind is None:
                    raw_start, raw_stop = self.raw_range(span)
                    self._source.expect(raw_start, raw_stop - raw_start)
                yield span

    def _data_and_holes(self) -> Iterator[tuple[int, int, BlockKind | None]]:
        """Yield adjacent half-open ranges of blocks and their kind: ZERO for a hole, None for data."""
        next_block = 0
        for start, stop in self._source.data_ranges():
            first_block = max(next_block, start // self._block_bytes)
            yield next_block, first_block, BlockKind.ZERO
            next_block = max(next_block, block_count_of(stop, self._block_bytes))
            yield first_block, next_block, None
        yield next_block, self._block_count, BlockKind.ZERO

    def _without_unused(
        self, segments: Iterator[tuple[int, int, BlockKind | None]]
    ) -> Iterator[tuple[int, int, BlockKind | None]]:
        """Yield the same ranges, with the unused blocks as separate ranges."""
        unused = iter([*self._unused.tolist(), (self._block_count, self._block_count)])
        unused_first, unused_stop = next(unused)
        for first, stop, empty_kind in segments:
            block = first
            while block < stop:
                while unused_stop <= block:
                    unused_first, unused_stop = next(unused)
                if block < unused_first:
                    piece_stop, kind = min(stop, unused_first), empty_kind
                else:
                    piece_stop, kind = min(stop, unused_stop), BlockKind.UNUSED
                yield block, piece_stop, kind
                block = piece_stop

    def work(self, span: BlockSpan, buffer: memoryview) -> PackedSpan:
        """Pack one span; blocks that are stored raw stay in ``buffer``."""
        if span.empty_kind is None:
            return self._pack_data(span, buffer)
        return self._pack_empty(span, span.empty_kind)

    def _pack_empty(self, span: BlockSpan, kind: BlockKind) -> PackedSpan:
        n = span.block_count
        start, stop = self.raw_range(span)
        raw_hash = bytes(HASH_BYTES * n)
        if kind is BlockKind.ZERO:
            last_length = stop - start - (n - 1) * self._block_bytes
            raw_hash = zero_hash(self._block_bytes) * (n - 1) + zero_hash(last_length)
        return PackedSpan(
            span,
            np.full(n, kind, np.uint8),
            np.zeros(n, np.uint32),
            bytes(HASH_BYTES * n),
            raw_hash,
            [],
            memoryview(b""),
        )

    def _pack_data(self, span: BlockSpan, buffer: memoryview) -> PackedSpan:
        kinds: list[BlockKind] = []
        payload: list[bytes | memoryview] = []
        stored_bytes: list[int] = []
        stored_hashes: list[bytes] = []
        raw_hashes: list[bytes] = []
        start, stop = self.raw_range(span)
        for offset in range(start, stop, self._block_bytes):
            length = min(self._block_bytes, stop - offset)
            raw = buffer[offset - start : offset - start + length]
            self._source.read_into(offset, raw)
            kind, stored, stored_hash, raw_hash = self._pack_block(raw)
            kinds.append(kind)
            stored_bytes.append(len(stored))
            stored_hashes.append(stored_hash)
            raw_hashes.append(raw_hash)
            if stored:
                payload.append(stored)
        return PackedSpan(
            span,
            np.array(kinds, np.uint8),
            np.array(stored_bytes, np.uint32),
            b"".join(stored_hashes),
            b"".join(raw_hashes),
            payload,
            buffer[: stop - start],
        )

    def _pack_block(self, raw: memoryview) -> tuple[BlockKind, bytes | memoryview, bytes, bytes]:
        """Return kind, stored bytes, stored hash and raw hash of one block."""
        if not np.frombuffer(raw, np.uint8).any():
            return BlockKind.ZERO, b"", bytes(HASH_BYTES), zero_hash(len(raw))
        kind, stored = self._encoder().encode(raw)
        raw_hash = block_hash(raw)
        return kind, stored, raw_hash if kind == BlockKind.RAW else block_hash(stored), raw_hash

    def _encoder(self) -> BlockEncoder:
        encoder: BlockEncoder | None = getattr(self._thread_local, "encoder", None)
        if encoder is None:
            encoder = self._thread_local.encoder = BlockEncoder(self._level, self._block_bytes)
        return encoder
