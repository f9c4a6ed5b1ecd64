"""Read-back verification: every difference is found and named, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.disk.read_back import ReadBack, ReadBackMode, open_read_back
from receiver.disk.verifier import READ_BYTES, Verifier
from tests.support.disks.disk_images import BLOCK_BYTES, MadeImage, make_image

KINDS = "rzzdzuzr" * 10 + "zd"
MADE = make_image(KINDS, tail_bytes=5000)


def _write_sparse(made: MadeImage, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(len(made.raw))
        for block in np.flatnonzero(made.manifest.stored_mask).tolist():
            start = block * made.manifest.block_bytes
            file.seek(start)
            file.write(made.raw[start : start + made.manifest.block_bytes])
        os.fsync(file.fileno())


def _overwrite(path: Path, offset_bytes: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        file.write(data)
        os.fsync(file.fileno())


def _open(path: Path, mode: ReadBackMode) -> ReadBack:
    if mode is ReadBackMode.DIRECT:
        return open_read_back(path)
    return ReadBack(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), mode)


def _mismatching(path: Path, made: MadeImage, mode: ReadBackMode = ReadBackMode.DIRECT) -> list[int]:
    with _open(path, mode) as read_back:
        return Verifier(read_back, made.manifest).verify_blocks(np.arange(made.manifest.block_count)).tolist()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target.raw"
    _write_sparse(MADE, path)
    return path


@pytest.mark.parametrize("mode", ReadBackMode)
def test_right_content_verifies(target: Path, mode: ReadBackMode) -> None:
    assert _mismatching(target, MADE, mode) == []


@pytest.mark.parametrize("mode", ReadBackMode)
@pytest.mark.parametrize("block", range(8))
@pytest.mark.parametrize("where", [0, BLOCK_BYTES // 2 + 1, BLOCK_BYTES - 1])
def test_one_wrong_bit_is_found(target: Path, mode: ReadBackMode, block: int, where: int) -> None:
    offset_bytes = block * BLOCK_BYTES + where
    _overwrite(target, offset_bytes, bytes([MADE.raw[offset_bytes] ^ 1]))
    assert _mismatching(target, MADE, mode) == ([] if KINDS[block] == "u" else [block])


def test_the_last_byte_counts(target: Path) -> None:
    _overwrite(target, len(MADE.raw) - 1, bytes([MADE.raw[-1] ^ 1]))
    assert _mismatching(target, MADE) == [len(KINDS) - 1]


def test_zeros_that_were_written_are_as_good_as_holes(target: Path) -> None:
    target.write_bytes(MADE.raw)
    assert _mismatching(target, MADE) == []


def test_a_target_that_became_shorter_differs_from_there_on(target: Path) -> None:
    os.truncate(target, 50 * BLOCK_BYTES + 100)
    assert _mismatching(target, MADE) == [block for block in range(50, len(KINDS)) if KINDS[block] != "u"]


def test_content_after_the_image_does_not_matter(target: Path) -> None:
    _overwrite(target, len(MADE.raw), b"a larger disk")
    assert _mismatching(target, MADE) == []


def test_only_the_requested_blocks_are_read(target: Path) -> None:
    _overwrite(target, 0, b"wrong")
    _overwrite(target, 3 * BLOCK_BYTES, b"wrong")
    with open_read_back(target) as read_back:
        verifier = Verifier(read_back, MADE.manifest)
        assert verifier.verify_blocks(np.array([1, 3, 7])).tolist() == [3]
        assert verifier.verify_blocks(np.array([], np.int64)).tolist() == []


@settings(max_examples=25)
@given(st.sets(st.integers(0, len(KINDS) - 1), max_size=12), st.randoms(use_true_random=False))
def test_exactly_the_wrong_blocks_are_named(
    tmp_path_factory: pytest.TempPathFactory, wrong: set[int], rng
) -> None:
    path = tmp_path_factory.mktemp("verify") / "target.raw"
    _write_sparse(MADE, path)
    with path.open("r+b") as file:
        for block in wrong:
            where = block * BLOCK_BYTES + rng.randrange(MADE.manifest.raw_length(block))
            file.seek(where)
            file.write(bytes([MADE.raw[where] ^ 0x80]))
        file.flush()
        os.fsync(file.fileno())
    assert _mismatching(path, MADE) == sorted(block for block in wrong if KINDS[block] != "u")
    path.unlink()


@pytest.mark.parametrize("block_bytes", [READ_BYTES // 2, READ_BYTES])
def test_blocks_as_large_as_the_buffer(tmp_path: Path, block_bytes: int) -> None:
    made = make_image("rdzr", block_bytes=block_bytes, tail_bytes=block_bytes - 1)
    _write_sparse(made, tmp_path / "target.raw")
    assert _mismatching(tmp_path / "target.raw", made) == []
    _overwrite(tmp_path / "target.raw", 2 * block_bytes - 1, b"\xff\xff")
    assert _mismatching(tmp_path / "target.raw", made) == [1, 2]


@pytest.mark.parametrize("mode", ReadBackMode)
@pytest.mark.parametrize("skew_bytes", [0, 1])
def test_a_block_is_read_as_it_is(target: Path, mode: ReadBackMode, skew_bytes: int) -> None:
    """Held-back blocks that the target holds already are read from it."""
    _overwrite(target, 3 * BLOCK_BYTES + 5, b"other")
    content = target.read_bytes()
    with _open(target, mode) as read_back:
        verifier = Verifier(read_back, MADE.manifest)
        for block in (0, 3, len(KINDS) - 1):
            length = MADE.manifest.raw_length(block)
            into = memoryview(bytearray(length + skew_bytes))[skew_bytes:]
            assert verifier.read_block(block, into) == length
            assert into == content[block * BLOCK_BYTES : block * BLOCK_BYTES + length]


def test_a_block_beyond_the_end_is_read_as_far_as_it_goes(target: Path) -> None:
    os.truncate(target, 3 * BLOCK_BYTES + 100)
    with open_read_back(target) as read_back:
        verifier = Verifier(read_back, MADE.manifest)
        into = memoryview(bytearray(BLOCK_BYTES))
        assert verifier.read_block(3, into) == 100
        assert into[:100] == MADE.raw[3 * BLOCK_BYTES : 3 * BLOCK_BYTES + 100]
        assert verifier.read_block(4, into) == 0


def test_many_readers_find_the_same(tmp_path: Path) -> None:
    made = make_image("rd" * 500, tail_bytes=5000)
    path = tmp_path / "target.raw"
    _write_sparse(made, path)
    wrong = sorted(np.random.default_rng(3).choice(1000, 40, replace=False).tolist())
    for block in wrong:
        start = block * BLOCK_BYTES + 99
        _overwrite(path, start, bytes([made.raw[start] ^ 1]))
    with open_read_back(path) as read_back:
        verifier = Verifier(read_back, made.manifest)
        for threads in (1, 2, 5):
            assert verifier.verify_blocks(np.arange(1000), threads=threads).tolist() == wrong
