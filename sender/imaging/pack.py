"""Pack a disk into an image, through a bounded pipeline of threads.

Each worker takes a span of the disk through all steps while it is in the CPU's cache: read, test for zeros, zstd,
BLAKE3. The caller's thread writes the spans in order, so the image doesn't depend on the number of workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import BLOCK_BYTES_DEFAULT, HASH_BYTES, IMAGE_NAME_BYTES_MAX, MIB
from protocol.disk.disk_layout import layout_metadata
from protocol.disk.partition_table import parse_layout_untrusted
from protocol.errors import ConfigurationError
from protocol.image.block_codec import (
    LEVEL_DEFAULT,
    BlockEncoder,
    block_hash,
    encoder_memory_bytes,
    zero_hash,
)
from protocol.image.image_format import ImageHeader
from protocol.image.manifest import BlockKind
from protocol.image.manifest_format import block_count_of, build_manifest_start, check_block_bytes
from sender.imaging.image_writer import ImageWriter
from sender.imaging.ordered_pipeline import SPAN_BYTES, job_count, ordered_map
from sender.imaging.source import Source
from sender.imaging.source_hash import SHA256_BYTES, SourceHash
from sender.imaging.source_use import find_source_use, require_unused
from sender.imaging.used_blocks import NO_UNUSED, AreaUsage, find_unused_blocks

ENCODER_BYTES_MAX: Final = 160 * MIB
"""Limit of all encoders together: 2 of the largest (level 22, 4 MiB blocks), or one per span buffer at usual levels."""

_EMPTY_BLOCKS_MAX: Final = 1 << 16
"""Blocks of a hole or of free space per write of manifest rows: 4.5 MB."""


@dataclasses.dataclass(frozen=True, slots=True)
class PackOptions:
    """Options of the operator; None for a default that depends on the source or the machine."""

    name: str | None = None
    block_bytes: int = BLOCK_BYTES_DEFAULT
    level: int = LEVEL_DEFAULT
    jobs: int | None = None
    every_byte: bool = False
    """Pack free space too and record the SHA-256 of the whole disk: for evidence, not for deployment."""
    allow_mounted: bool = False
    """Pack a source although something may write to it."""


@dataclasses.dataclass(frozen=True, slots=True)
class PackResult:
    """The path and the id of the packed image; its manifest has everything else."""

    path: Path
    image_id: bytes
    duration_s: float
    areas: tuple[AreaUsage, ...]
    """Used space of the source's partitions; empty with ``every_byte``."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    """Consecutive blocks: to read, or all ZERO because they are a hole, or all UNUSED."""

    first_block: int
    block_count: int
    empty_kind: BlockKind | None = None
    """The kind of all blocks; None for blocks to read."""


@dataclasses.dataclass(frozen=True, slots=True)
class _PackedSpan:
    """Manifest rows of a span, with its raw and stored bytes, which may be in the span's buffer."""

    span: _Span
    kind: NDArray[np.uint8]
    stored_bytes: NDArray[np.uint32]
    stored_hash: bytes
    raw_hash: bytes
    payload: list[bytes | memoryview]
    raw: memoryview
    """Empty if nothing was read."""


def default_name(source_path: Path) -> str:
    """Return the source's file name, made printable and truncated to the limit.

    The name is the source's rather than the output's, so that the same disk always gives the same image.
    """
    printable = "".join(letter if letter.isprintable() else "_" for letter in source_path.name)
    return printable.encode()[:IMAGE_NAME_BYTES_MAX].decode(errors="ignore") or "disk"


def pack_image(
    source_path: Path,
    output_path: Path,
    options: PackOptions,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    on_areas: Callable[[Sequence[AreaUsage]], None] = lambda _: None,
    sign: Callable[[ImageHeader], ImageHeader] = lambda header: header,
) -> PackResult:
    """Pack a disk, or a file with a disk's content, into an image file.

    Blocks that no filesystem uses become UNUSED: they are neither read nor stored, see
    :mod:`sender.imaging.used_blocks`. The same source content, name, level, block size and filesystem tools always
    give the same file; the number of jobs, the source's holes and the time don't matter. Memory doesn't grow with the
    source's size or the jobs: 64 MiB of span buffers, as much of compressed blocks, 160 MiB of encoders; with the
    interpreter below 400 MB.

    Args:
        source_path: a file or a block device that nothing writes to during packing.
        output_path: the image; an existing file is replaced only once the new one is complete and durable.
        options: see :class:`PackOptions`.
        on_progress: called in this thread with the raw bytes done and the total raw bytes.
        on_areas: called in this thread with the used space of each partition, before packing starts; not called with
            ``every_byte``.
        sign: returns the header with a signature; the image appears signed under its final name.

    Raises:
        ConfigurationError: an option is out of its range, or the output can't be created.
        SourceInUseError: the source is mounted writable.
        SourceError: the source can't be used or read, or changed during packing.
        StorageError: the output's disk is full or failed.
    """
    started_s = time.monotonic()
    check_block_bytes(options.block_bytes)
    name = default_name(source_path) if options.name is None else options.name
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Source(source_path))
        use = find_source_use(source_path, source.status)
        if not options.allow_mounted:
            require_unused(source_path, use)
        layout = parse_layout_untrusted(
            source.read, source.raw_bytes, sector_bytes=source.logical_sector_bytes
        )
        metadata: dict[str, object] = {
            "layout": layout_metadata(layout),
            "logical_sector_bytes": source.logical_sector_bytes,
        }
        if options.every_byte:
            metadata["source_sha256"] = bytes(SHA256_BYTES)  # a placeholder of the same length
        start, manifest_layout = build_manifest_start(name, source.raw_bytes, options.block_bytes, metadata)
        jobs = min(
            job_count(options.jobs),
            max(1, ENCODER_BYTES_MAX // encoder_memory_bytes(options.level, options.block_bytes)),
        )
        if source.is_same_file(output_path):
            raise ConfigurationError(f"{output_path} is the source itself: choose another output")
        writer = stack.enter_context(ImageWriter(output_path, start, manifest_layout))
        unused = NO_UNUSED
        if not options.every_byte:
            unused = find_unused_blocks(source, layout, options.block_bytes, may_change=use.may_change)
            on_areas(unused.areas)
        source_hash = SourceHash() if options.every_byte else None
        packer = _Packer(source, options, unused.ranges)
        # Entered last and therefore left first: no worker reads the source after it is closed.
        packed_spans = stack.enter_context(
            contextlib.closing(ordered_map(packer.work, packer.spans(), jobs=jobs))
        )
        for packed in packed_spans:
            writer.append_payload(packed.payload)
            writer.write_rows(
                packed.span.first_block, packed.kind, packed.stored_bytes, packed.stored_hash, packed.raw_hash
            )
            raw_start, raw_stop = packer.raw_range(packed.span)
            if source_hash is not None:
                source_hash.add(packed.raw)
                source_hash.add_zeros(raw_stop - raw_start - len(packed.raw))  # 0 unless the span is a hole
            if packed.span.empty_kind is None:
                source.forget(raw_start, raw_stop - raw_start)
            on_progress(raw_stop, source.raw_bytes)
        source.check_unchanged()
        if source_hash is not None:
            metadata["source_sha256"] = source_hash.digest()
            start, _ = build_manifest_start(name, source.raw_bytes, options.block_bytes, metadata)
        image_id = writer.commit(start, sign)
    return PackResult(writer.path, image_id, time.monotonic() - started_s, unused.areas)


class _Packer:
    """A packer that cuts the source into spans; :meth:`work` runs in many threads at once."""

    def __init__(self, source: Source, options: PackOptions, unused: NDArray[np.int64]) -> None:
        """Pack ``source`` without the blocks of ``unused[n, 2]``, ascending half-open ranges."""
        self._source = source
        self._options = options
        self._block_bytes = options.block_bytes
        self._block_count = block_count_of(source.raw_bytes, options.block_bytes)
        self._unused = unused
        self._thread_local = threading.local()

    def raw_range(self, span: _Span) -> tuple[int, int]:
        """Return the half-open range of the disk that ``span`` covers."""
        start = span.first_block * self._block_bytes
        return start, min(self._source.raw_bytes, start + span.block_count * self._block_bytes)

    def spans(self) -> Iterator[_Span]:
        """Yield all blocks in order; a block with any data is read completely."""
        blocks_per_span = SPAN_BYTES // self._block_bytes
        # With every_byte holes are hashed too: in small steps, so that progress is visible.
        empty_step = blocks_per_span if self._options.every_byte else _EMPTY_BLOCKS_MAX
        for first, stop, empty_kind in self._without_unused(self._data_and_holes()):
            step = blocks_per_span if empty_kind is None else empty_step
            for block in range(first, stop, step):
                span = _Span(block, min(step, stop - block), empty_kind)
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

    def work(self, span: _Span, buffer: memoryview) -> _PackedSpan:
        """Pack one span; blocks that are stored raw stay in ``buffer``."""
        if span.empty_kind is None:
            return self._pack_data(span, buffer)
        return self._pack_empty(span, span.empty_kind)

    def _pack_empty(self, span: _Span, kind: BlockKind) -> _PackedSpan:
        n = span.block_count
        start, stop = self.raw_range(span)
        raw_hash = bytes(HASH_BYTES * n)
        if kind is BlockKind.ZERO:
            last_length = stop - start - (n - 1) * self._block_bytes
            raw_hash = zero_hash(self._block_bytes) * (n - 1) + zero_hash(last_length)
        return _PackedSpan(
            span,
            np.full(n, kind, np.uint8),
            np.zeros(n, np.uint32),
            bytes(HASH_BYTES * n),
            raw_hash,
            [],
            memoryview(b""),
        )

    def _pack_data(self, span: _Span, buffer: memoryview) -> _PackedSpan:
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
        return _PackedSpan(
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
            encoder = self._thread_local.encoder = BlockEncoder(self._options.level, self._block_bytes)
        return encoder
