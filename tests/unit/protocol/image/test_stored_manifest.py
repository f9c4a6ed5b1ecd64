"""A manifest too large for memory: used like any other, and never trusted after its file has changed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from blake3 import blake3

from protocol.constants import HASH_BYTES
from protocol.errors import ImageChangedError, ImageDamagedError, StorageError
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest
from protocol.image.stored_manifest import PIECE_BYTES, StoredManifest

BLOCK_BYTES = 64 * 1024
BLOCK_COUNT = 10_000
"""Create a manifest with five pieces of each column of hashes, none of which starts with a piece."""


def _columns() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    kind = rng.integers(0, 4, BLOCK_COUNT).astype(np.uint8)
    stored = rng.integers(1, BLOCK_BYTES, BLOCK_COUNT).astype(np.uint32)
    stored[kind == BlockKind.RAW] = BLOCK_BYTES
    stored[kind >= BlockKind.ZERO] = 0
    hashes = rng.integers(0, 256, (2, BLOCK_COUNT, HASH_BYTES)).astype(np.uint8)
    return kind, stored, hashes[0], hashes[1]


KIND, STORED, STORED_HASH, RAW_HASH = _columns()
DATA = build_manifest(
    "large", BLOCK_COUNT * BLOCK_BYTES, BLOCK_BYTES, KIND, STORED, STORED_HASH, RAW_HASH, {}
)
SIZES = [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, len(DATA)]


def reader_of(data: bytes | bytearray) -> Callable[[int, memoryview], None]:
    def read(start: int, into: memoryview) -> None:
        into[:] = data[start : start + len(into)]

    return read


def stored(data: bytes | bytearray = DATA) -> StoredManifest:
    return StoredManifest(len(data), reader_of(data), "image.dci")


@pytest.mark.parametrize("size_bytes", SIZES)
def test_slices_are_those_of_the_bytes(size_bytes: int) -> None:
    data = DATA[:size_bytes]
    taken = stored(data)
    assert len(taken) == size_bytes
    assert taken.digest == blake3(data).digest()
    edges = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, size_bytes, size_bytes + 9]
    for start in edges:
        for stop in edges:
            assert taken[start:stop] == data[start:stop], (start, stop)


def test_a_stored_manifest_equals_one_in_memory() -> None:
    expected, manifest = Manifest.parse_untrusted(DATA), Manifest.parse_untrusted(stored())
    assert manifest.image_id == expected.image_id
    assert manifest.summary() == expected.summary()
    assert np.array_equal(manifest.kind, KIND)
    assert np.array_equal(manifest.stored_bytes, STORED)
    for column, hashes in ((manifest.stored_hash, STORED_HASH), (manifest.raw_hash, RAW_HASH)):
        assert np.array_equal(column[:], hashes)
        assert np.array_equal(column[2040:2060], hashes[2040:2060])
        assert column[5:5].shape == (0, HASH_BYTES)
        scattered = np.array([9_999, 0, 1, 2047, 2048, 5000, 5000, 17])
        assert np.array_equal(column[scattered], hashes[scattered])
        assert column[np.array([], np.int64)].shape == (0, HASH_BYTES)
        assert column[np.int64(4095)].tobytes() == hashes[4095].tobytes()  # type: ignore[index]
        with pytest.raises(IndexError):
            column[BLOCK_COUNT]


def test_every_way_to_a_blocks_offset_agrees() -> None:
    manifest = Manifest.parse_untrusted(DATA)
    for block in (0, 1, 1023, 1024, 1025, 4096, BLOCK_COUNT - 1):
        assert manifest.offset_of(block) == manifest.offsets[block]
    assert manifest.offset_of(BLOCK_COUNT) == manifest.offsets[-1] == manifest.payload_bytes


@pytest.mark.parametrize("at", [5, len(DATA) // 2, len(DATA) - 3])
def test_one_altered_bit_is_an_error_and_no_hash(at: int) -> None:
    data = bytearray(DATA)
    taken = stored(data)
    data[at] ^= 1
    with pytest.raises(ImageChangedError, match=r"image\.dci: .*manifest was written to"):
        taken[at : at + 1]
    elsewhere = (at + 2 * PIECE_BYTES) % len(DATA)
    assert taken[elsewhere : elsewhere + 5] == DATA[elsewhere : elsewhere + 5]


def test_a_damaged_one_is_refused_as_any_other() -> None:
    data = bytearray(DATA)
    data[48 + 8] ^= 0xFF
    with pytest.raises(ImageDamagedError):
        Manifest.parse_untrusted(stored(data[:-64]))


def test_a_failing_disk_is_an_error_of_the_slice() -> None:
    fails = False

    def read(start: int, into: memoryview) -> None:
        if fails:
            raise StorageError("the disk failed")
        into[:] = DATA[start : start + len(into)]

    manifest = Manifest.parse_untrusted(StoredManifest(len(DATA), read, "image.dci"))
    fails = True
    with pytest.raises(StorageError):
        manifest.raw_hash[BLOCK_COUNT // 2]


def test_threads_at_different_places_get_their_own_rows() -> None:
    manifest = Manifest.parse_untrusted(stored())
    wrong: list[int] = []

    def check(seed: int) -> None:
        blocks = np.random.default_rng(seed).integers(0, BLOCK_COUNT, 2000).tolist()
        wrong.extend(block for block in blocks if (manifest.raw_hash[block] != RAW_HASH[block]).any())

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
