"""The second read of a captured disk: hashes only, from the disk rather than from memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES
from protocol.control.capture_messages import BATCH_BLOCKS_MAX, PROOF_HASHES_MAX
from protocol.image.block_codec import block_hash
from protocol.image.manifest import BlockKind
from protocol.packing.ordered_pipeline import ordered_map
from protocol.packing.source import Source
from protocol.packing.source_hash import SourceHash
from protocol.packing.span_packer import BlockSpan, SpanPacker


@dataclasses.dataclass(frozen=True, slots=True)
class ProofRows:
    """Hashes of consecutive blocks; see :class:`protocol.control.capture_messages.ProofBatch`."""

    first_block: int
    kind: NDArray[np.uint8]
    raw_hash: NDArray[np.uint8]


def proof_rows(
    source: Source, packer: SpanPacker, block_bytes: int, *, jobs: int, source_hash: SourceHash | None
) -> Generator[ProofRows, None, None]:
    """Read the disk again, and yield its hashes in order; ``source_hash`` takes all bytes.

    Raises:
        SourceError: the disk can't be read.
    """
    os.posix_fadvise(source.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def work(span: BlockSpan, buffer: memoryview) -> tuple[BlockSpan, ProofRows, memoryview]:
        if span.empty_kind is not None:
            kind = np.full(span.block_count, span.empty_kind, np.uint8)
            return (
                span,
                ProofRows(span.first_block, kind, np.empty((0, HASH_BYTES), np.uint8)),
                memoryview(b""),
            )
        start, stop = packer.raw_range(span)
        raw = buffer[: stop - start]
        source.read_into(start, raw)
        kinds, hashes = [], []
        for offset in range(0, len(raw), block_bytes):
            block = raw[offset : offset + block_bytes]
            is_zero = not np.frombuffer(block, np.uint8).any()
            kinds.append(BlockKind.ZERO if is_zero else BlockKind.DATA)
            if not is_zero:
                hashes.append(block_hash(block))
        rows = ProofRows(
            span.first_block,
            np.array(kinds, np.uint8),
            np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES),
        )
        return span, rows, raw

    collected: list[ProofRows] = []
    with contextlib.closing(ordered_map(work, packer.spans(), jobs=jobs)) as results:
        for span, rows, raw in results:
            start, stop = packer.raw_range(span)
            if source_hash is not None:
                source_hash.add(raw)
                source_hash.add_zeros(stop - start - len(raw))
            if span.empty_kind is None:
                source.forget(start, stop - start)
            if not _fits(collected, rows):
                yield _joined(collected)
                collected = []
            collected.append(rows)
        if collected:
            yield _joined(collected)


def _fits(collected: list[ProofRows], rows: ProofRows) -> bool:
    blocks = sum(len(each.kind) for each in collected) + len(rows.kind)
    hashes = sum(len(each.raw_hash) for each in collected) + len(rows.raw_hash)
    return blocks <= BATCH_BLOCKS_MAX and hashes <= PROOF_HASHES_MAX


def _joined(collected: list[ProofRows]) -> ProofRows:
    return ProofRows(
        collected[0].first_block,
        np.concatenate([rows.kind for rows in collected]),
        np.concatenate([rows.raw_hash for rows in collected]),
    )
