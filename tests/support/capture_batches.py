"""Batches of captures drawn from a seed."""

from __future__ import annotations

import random

import numpy as np

from protocol.constants import HASH_BYTES
from protocol.control.capture_messages import (
    UPLOADER_BYTES,
    BlockGeometry,
    BlockRows,
    ProofBatch,
    SpanBatch,
)
from protocol.image.block_codec import zero_hash
from protocol.image.manifest import BlockKind


def sample_rows(pick: random.Random, geometry: BlockGeometry) -> BlockRows:
    """Return valid rows of some blocks, often with the last one."""
    first = pick.randrange(geometry.block_count)
    count = pick.choice((0, 1, geometry.block_count - first))
    kinds = [pick.choice(list(BlockKind)) for _ in range(count)]
    stored_bytes, stored_hash, raw_hash = [], [], []
    for block, kind in enumerate(kinds, first):
        length = geometry.raw_length(block)
        raw = zero_hash(length) if kind is BlockKind.ZERO else pick.randbytes(HASH_BYTES)
        if kind is BlockKind.UNUSED:
            raw = bytes(HASH_BYTES)
        stored_bytes.append({BlockKind.DATA: pick.randrange(1, length), BlockKind.RAW: length}.get(kind, 0))
        stored = {BlockKind.DATA: pick.randbytes(HASH_BYTES), BlockKind.RAW: raw}
        stored_hash.append(stored.get(kind, bytes(HASH_BYTES)))
        raw_hash.append(raw)
    return BlockRows(
        first,
        np.array(kinds, np.uint8),
        np.array(stored_bytes, np.uint32),
        b"".join(stored_hash),
        b"".join(raw_hash),
    )


def sample_span_batch(pick: random.Random, geometry: BlockGeometry) -> SpanBatch:
    """Return a valid batch with a payload of some bytes."""
    payload = memoryview(pick.randbytes(pick.choice((0, 1, 1000))))
    return SpanBatch(
        pick.randbytes(UPLOADER_BYTES), pick.randrange(1 << 40), sample_rows(pick, geometry), payload
    )


def sample_proof_batch(pick: random.Random, geometry: BlockGeometry) -> ProofBatch:
    """Return a valid batch of a proof."""
    rows = sample_rows(pick, geometry)
    kind = np.where(rows.kind == BlockKind.RAW, np.uint8(BlockKind.DATA), rows.kind)
    hashes = np.frombuffer(rows.raw_hash, np.uint8).reshape(-1, HASH_BYTES)[kind == BlockKind.DATA]
    return ProofBatch(pick.randbytes(UPLOADER_BYTES), 3, rows.first_block, kind, hashes)
