"""Blocks on their way to a file: the right bytes at the right place, holes where zeros are, nothing wrong written."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import zstandard

from protocol.errors import ImageDamagedError
from receiver.block_sink import BlockSink
from receiver.target import open_target
from tests.disk_images import BLOCK_BYTES, MadeImage, allocated_bytes, make_image

KINDS = "drzzzrdzuurdddzdzr"


def _write(made: MadeImage, path: Path, *, seed: int = 1) -> None:
    """All of an image in a random order, flushed and verified."""
    blocks = np.arange(made.manifest.block_count)
    stored = np.random.default_rng(seed).permutation(blocks[made.manifest.stored_mask])
    with open_target(path, raw_bytes=made.manifest.raw_bytes) as target:
        sink = BlockSink(target, made.manifest)
        sink.prepare()
        sink.prepare_zero_runs(blocks)
        for block in stored.tolist():
            assert sink.decode_and_write(block, memoryview(made.stored[block])) == made.manifest.raw_length(
                block
            )
        assert sink.bytes_written == sum(made.manifest.raw_length(block) for block in stored.tolist())
        sink.sync()
        assert sink.verify(blocks).size == 0


TAILS = [
    (tail, tail_bytes)
    for tail in "drz"
    for tail_bytes in (511, 512, 4095, 4097, BLOCK_BYTES - 1, BLOCK_BYTES)
]


@pytest.mark.parametrize(("tail", "tail_bytes"), [*TAILS, ("r", 1), ("z", 1)])
def test_blocks_in_any_order_make_the_disk(tmp_path: Path, tail: str, tail_bytes: int) -> None:
    made = make_image(KINDS + tail, tail_bytes=tail_bytes)
    _write(made, tmp_path / "target.raw")
    assert (tmp_path / "target.raw").read_bytes() == made.raw


@pytest.mark.parametrize("block_bytes", [1 << 18, 1 << 22])
def test_large_blocks(tmp_path: Path, block_bytes: int) -> None:
    made = make_image("zdrd", block_bytes=block_bytes, tail_bytes=block_bytes // 2 + 7)
    _write(made, tmp_path / "target.raw")
    assert (tmp_path / "target.raw").read_bytes() == made.raw


def test_a_sparse_image_stays_sparse(tmp_path: Path) -> None:
    path = tmp_path / "target.raw"
    made = make_image("z" * 200 + "r" + "z" * 200, tail_bytes=1000)
    _write(made, path)
    assert allocated_bytes(path) <= 2 * BLOCK_BYTES


def test_zeros_replace_what_an_old_file_held(tmp_path: Path) -> None:
    """Last week's content must not shine through where this week's image is empty; its space is given back."""
    path = tmp_path / "target.raw"
    made = make_image("z" * 20 + "rdz", tail_bytes=1000)
    path.write_bytes(b"\xff" * (30 * BLOCK_BYTES))
    _write(made, path)
    assert path.read_bytes() == made.raw
    assert allocated_bytes(path) <= 3 * BLOCK_BYTES


def test_a_hole_isn_t_written(tmp_path: Path) -> None:
    """Zeroing an empty file costs nothing, whatever its size."""
    path = tmp_path / "target.raw"
    made = make_image("z" * 50)
    _write(made, path)
    assert allocated_bytes(path) == 0


def test_unused_blocks_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "target.raw"
    made = make_image("ruur")
    path.write_bytes(b"\xee" * len(made.raw))
    _write(made, path)
    assert path.read_bytes()[BLOCK_BYTES : 3 * BLOCK_BYTES] == b"\xee" * (2 * BLOCK_BYTES)


def test_wrong_stored_bytes_are_not_written(tmp_path: Path) -> None:
    """A receiver asks for such a block again; the cast goes on."""
    path = tmp_path / "target.raw"
    made = make_image("drr")
    with open_target(path, raw_bytes=made.manifest.raw_bytes) as target:
        sink = BlockSink(target, made.manifest)
        sink.prepare()
        for block in (0, 1):
            right = np.frombuffer(made.stored[block], np.uint8)
            altered = right.copy()
            altered[-1] ^= 1
            for wrong in (altered, right[:-1], np.append(right, np.uint8(0)), right[:0]):
                assert sink.decode_and_write(block, wrong) == 0
        assert sink.decode_and_write(1, np.frombuffer(made.stored[2], np.uint8)) == 0
        assert sink.bytes_written == 0
        sink.sync()
        assert allocated_bytes(path) == 0
        assert sink.decode_and_write(0, np.frombuffer(made.stored[0], np.uint8)) == BLOCK_BYTES


def _frame(raw: bytes, *, content_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=content_size).compress(raw)


@pytest.mark.parametrize(
    "frame",
    [
        _frame(bytes(BLOCK_BYTES - 1)),
        _frame(bytes(BLOCK_BYTES + 1)),
        _frame(bytes(1 << 28)),
        _frame(bytes(BLOCK_BYTES), content_size=False),
        _frame(bytes(BLOCK_BYTES)) + b"more",
        _frame(bytes(BLOCK_BYTES))[:-1],
        b"no frame at all",
    ],
    ids=["shorter", "longer", "bomb", "silent", "more", "cut", "none"],
)
def test_a_wrongly_packed_block_ends_it(tmp_path: Path, frame: bytes) -> None:
    """Its hash is right, so asking for it again would go on for ever."""
    made = make_image("rdr", frames={1: frame})
    with open_target(tmp_path / "target.raw", raw_bytes=made.manifest.raw_bytes) as target:
        sink = BlockSink(target, made.manifest)
        sink.prepare()
        with pytest.raises(ImageDamagedError, match=r"block 1 .* pack the image again"):
            sink.decode_and_write(1, memoryview(made.stored[1]))
        assert sink.bytes_written == 0


def test_many_threads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "target.raw"
    made = make_image("drzd" * 80, tail_bytes=777)
    stored = np.flatnonzero(made.manifest.stored_mask)
    failures: list[BaseException] = []
    with open_target(path, raw_bytes=made.manifest.raw_bytes) as target:
        sink = BlockSink(target, made.manifest)
        sink.prepare()

        def run(blocks: list[int]) -> None:
            try:
                for block in blocks:
                    assert sink.decode_and_write(block, memoryview(made.stored[block]))
                sink.sync()
                assert sink.verify(np.array(sorted(blocks))).size == 0
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=run, args=(stored[part::4].tolist(),)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert sink.bytes_written == sum(made.manifest.raw_length(block) for block in stored.tolist())
    assert path.read_bytes() == made.raw


def test_descriptors_are_closed(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    _write(make_image("dzr"), tmp_path / "target.raw")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
