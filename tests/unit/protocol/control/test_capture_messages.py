"""Batches of a capture: rows survive the wire, and a batch that lies is refused before anything is allocated for it."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from protocol.control.capture_messages import (
    BATCH_BLOCKS_MAX,
    BATCH_STORED_MAX,
    BlockGeometry,
    BlockRows,
    ProofBatch,
    SpanAnswer,
    SpanBatch,
)
from protocol.errors import ProtocolError
from protocol.image.block_codec import zero_hash
from protocol.image.manifest import BlockKind
from tests.support.capture_batches import sample_proof_batch, sample_span_batch

GEOMETRY = BlockGeometry(100 * (1 << 16) - 5, 1 << 16)
HEAD_BYTES = 40


@pytest.mark.parametrize("seed", range(40))
def test_rows_survive_the_wire(seed: int) -> None:
    """A capture must have exactly the rows that a local pack writes, those of zero and unused blocks included."""
    sent = sample_span_batch(random.Random(seed), GEOMETRY)
    got = SpanBatch.parse_untrusted(sent.to_bytes(), GEOMETRY)
    assert (got.uploader, got.sequence, got.rows.first_block) == (
        sent.uploader,
        sent.sequence,
        sent.rows.first_block,
    )
    np.testing.assert_array_equal(got.rows.kind, sent.rows.kind)
    np.testing.assert_array_equal(got.rows.stored_bytes, sent.rows.stored_bytes)
    assert got.rows.stored_hash == sent.rows.stored_hash
    assert got.rows.raw_hash == sent.rows.raw_hash
    assert got.payload == sent.payload


@pytest.mark.parametrize("seed", range(20))
def test_a_proof_survives_the_wire(seed: int) -> None:
    sent = sample_proof_batch(random.Random(seed), GEOMETRY)
    got = ProofBatch.parse_untrusted(sent.to_bytes(), GEOMETRY)
    assert (got.uploader, got.sequence, got.first_block) == (sent.uploader, sent.sequence, sent.first_block)
    np.testing.assert_array_equal(got.kind, sent.kind)
    np.testing.assert_array_equal(got.raw_hash, sent.raw_hash)


def test_the_short_last_block_has_the_hash_of_its_own_zeros() -> None:
    rows = BlockRows(99, np.array([BlockKind.ZERO], np.uint8), np.zeros(1, np.uint32), bytes(32), bytes(32))
    got = SpanBatch.parse_untrusted(SpanBatch(bytes(16), 0, rows, memoryview(b"")).to_bytes(), GEOMETRY)
    assert got.rows.raw_hash == zero_hash((1 << 16) - 5)


def _body(
    kind: bytes, *, first: int = 0, count: int | None = None, payload_bytes: int = 0, rest: bytes = b""
) -> bytes:
    count = len(kind) if count is None else count
    return struct.pack("<16sQQII", bytes(16), 0, first, count, payload_bytes) + kind + rest


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"short", "shorter than its head"),
        (_body(b"", count=BATCH_BLOCKS_MAX + 1), "exceed the disk or their limit"),
        (_body(b"\2", first=100), "exceed the disk"),
        (_body(b"\2", first=2**63), "exceed the disk"),
        (_body(b"", count=5), "shorter than its rows"),
        (_body(b"\4"), "unknown kind"),
        (_body(b"\2", payload_bytes=2**31), "too many stored blocks"),
        (_body(b"\2", payload_bytes=1), "expected"),
        (_body(b"\2", rest=b"x"), "expected"),
        (_body(b"\0", rest=struct.pack("<I", 0) + bytes(64)), "contradicts its kind"),
        (_body(b"\0", rest=struct.pack("<I", 1 << 16) + bytes(64)), "contradicts its kind"),
        (_body(b"\1", rest=struct.pack("<I", 5) + bytes(32)), "contradicts its kind"),
    ],
)
def test_a_batch_that_lies_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        SpanBatch.parse_untrusted(body, GEOMETRY)


def test_too_many_stored_blocks_are_refused_by_their_number() -> None:
    large = BlockGeometry((BATCH_STORED_MAX + 1) << 16, 1 << 16)
    with pytest.raises(ProtocolError, match="too many stored blocks"):
        SpanBatch.parse_untrusted(_body(bytes(BATCH_STORED_MAX + 1)), large)


def test_a_proof_knows_no_raw_blocks() -> None:
    """The second read compresses nothing, so it can't know which blocks were stored raw."""
    with pytest.raises(ProtocolError, match="unknown kind"):
        ProofBatch.parse_untrusted(_body(b"\1", rest=bytes(32)), GEOMETRY)
    with pytest.raises(ProtocolError, match="bytes of hashes"):
        ProofBatch.parse_untrusted(_body(b"\0", rest=bytes(31)), GEOMETRY)


def test_an_answer_names_the_wanted_blocks() -> None:
    wanted = np.array([True, False, False, True, True, False, False, False, True])
    answer = SpanAnswer.of(wanted)
    np.testing.assert_array_equal(answer.mask_untrusted(9), wanted)
    with pytest.raises(ProtocolError, match="17 bits"):
        answer.mask_untrusted(17)
