"""The block sink: wrong stored bytes aren't written, a wrongly packed block fails the run."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard

from protocol.errors import ImageDamagedError, TargetReplacedError
from protocol.image.block_codec import block_hash
from protocol.image.manifest import BlockKind
from receiver.target.block_sink import BlockSink, Outcome
from receiver.target.open_target import open_target
from tests.support.disks.disk_images import BLOCK_BYTES, MadeImage, make_image
from tests.support.programs.descriptors import descriptors

FREE = 40
"""A block far from both ends, which isn't held back until the end."""


def _blocks(made: MadeImage, blocks: list[int]) -> list[tuple[int, memoryview]]:
    return [(block, memoryview(made.stored[block])) for block in blocks]


def test_wrong_stored_bytes_are_not_written(tmp_path: Path) -> None:
    """A receiver requests such a block again; the cast continues."""
    path = tmp_path / "target.raw"
    made = make_image("d" * 40 + "dr" + "r" * 40)
    with open_target(path, raw_bytes=len(made.raw)) as target, BlockSink(target, made.manifest) as sink:
        sink.prepare()
        for block in (0, FREE, FREE + 1):
            right = np.frombuffer(made.stored[block], np.uint8)
            altered = right.copy()
            altered[-1] ^= 1
            other = np.frombuffer(made.stored[FREE + 2], np.uint8)
            for wrong in (altered, right[:-1], np.append(right, np.uint8(0)), right[:0], other):
                assert sink.write_blocks([(block, wrong)]) == [Outcome.WRONG]
        assert sink.bytes_written == 0
        assert path.read_bytes() == bytes(len(made.raw))
        wrong_between = [(FREE, made.stored[FREE]), (FREE + 1, b"wrong"), (FREE + 2, made.stored[FREE + 2])]
        outcomes = sink.write_blocks([(block, memoryview(stored)) for block, stored in wrong_between])
        assert outcomes == [Outcome.WRITTEN, Outcome.WRONG, Outcome.WRITTEN]
        sink.sync()
        assert sink.verify(np.arange(FREE, FREE + 3)).tolist() == [FREE + 1]


def _frame(raw: bytes, *, content_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=content_size).compress(raw)


@pytest.mark.parametrize(
    "frame",
    [
        _frame(bytes(BLOCK_BYTES - 1)),
        _frame(bytes(BLOCK_BYTES + 1)),
        _frame(bytes(BLOCK_BYTES), content_size=False),
        _frame(bytes(BLOCK_BYTES)) + b"more",
        _frame(bytes(BLOCK_BYTES))[:-1],
        b"no frame at all",
    ],
    ids=["shorter", "longer", "silent", "more", "cut", "none"],
)
@pytest.mark.parametrize("block", [1, FREE])
def test_a_wrongly_packed_block_ends_it(tmp_path: Path, frame: bytes, block: int) -> None:
    """A block with the right hash that is requested again would never end."""
    made = make_image("d" * 80, frames={block: frame})
    with (
        open_target(tmp_path / "target.raw", raw_bytes=len(made.raw)) as target,
        BlockSink(target, made.manifest) as sink,
    ):
        sink.prepare()
        with pytest.raises(ImageDamagedError, match=rf"block {block} .* pack the image again"):
            sink.write_blocks(_blocks(made, [block]))


@pytest.mark.parametrize("kinds", ["d", "r", "z", "u", "dz", "zzr", "drzu" * 20, "u" * 40 + "drz" * 20])
@pytest.mark.parametrize("tail_bytes", [600, 4097, BLOCK_BYTES])
def test_the_image_is_complete_after_the_commit(tmp_path: Path, kinds: str, tail_bytes: int) -> None:
    made = make_image(kinds, tail_bytes=tail_bytes)
    path = tmp_path / "target.raw"
    manifest = made.manifest
    with open_target(path, raw_bytes=len(made.raw)) as target, BlockSink(target, manifest) as sink:
        sink.prepare()
        sink.zero(np.flatnonzero(manifest.kind == BlockKind.ZERO))
        stored = np.random.default_rng(1).permutation(np.flatnonzero(manifest.stored_mask)).tolist()
        for start in range(0, len(stored), 16):
            outcomes = sink.write_blocks(_blocks(made, stored[start : start + 16]))
            assert Outcome.WRONG not in outcomes
        sink.sync()
        sink.commit()
        assert sink.verify(np.flatnonzero(manifest.kind != BlockKind.UNUSED)).size == 0
    if "u" not in kinds:
        assert path.read_bytes() == made.raw


def test_many_threads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "target.raw"
    made = make_image("drzd" * 80, tail_bytes=777)
    manifest = made.manifest
    stored = np.flatnonzero(manifest.stored_mask)
    failures: list[BaseException] = []
    with open_target(path, raw_bytes=len(made.raw)) as target, BlockSink(target, manifest) as sink:
        sink.prepare()

        def run(blocks: list[int]) -> None:
            try:
                for start in range(0, len(blocks), 7):
                    assert Outcome.WRONG not in sink.write_blocks(_blocks(made, blocks[start : start + 7]))
                sink.sync()
                written = [block for block in sorted(blocks) if block not in sink.commit_last]
                assert sink.verify(np.array(written)).size == 0
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=run, args=(stored[part::4].tolist(),)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        sink.zero(np.flatnonzero(manifest.kind == BlockKind.ZERO))
        sink.commit()
    assert path.read_bytes() == made.raw


def test_descriptors_are_closed(tmp_path: Path) -> None:
    before = descriptors()
    made = make_image("dzr")
    with (
        open_target(tmp_path / "target.raw", raw_bytes=len(made.raw)) as target,
        BlockSink(target, made.manifest) as sink,
    ):
        sink.prepare()
        sink.write_blocks(_blocks(made, [0, 2]))
        sink.commit()
    assert not descriptors() - before


def _remove(path: Path) -> None:
    path.unlink()


def _rename_over(path: Path) -> None:
    other = path.with_name("other.raw")
    other.write_bytes(bytes(path.stat().st_size))
    other.rename(path)


def _truncate(path: Path) -> None:
    os.truncate(path, 30 * BLOCK_BYTES)


def _truncate_and_extend(path: Path) -> None:
    size_bytes = path.stat().st_size
    _truncate(path)
    os.truncate(path, size_bytes)


@contextlib.contextmanager
def _all_written(path: Path) -> Iterator[BlockSink]:
    """Yield a sink whose blocks are written and flushed, before the commit."""
    made = make_image("dr" * 40)
    with open_target(path, raw_bytes=len(made.raw)) as target, BlockSink(target, made.manifest) as sink:
        sink.prepare()
        sink.write_blocks(_blocks(made, list(range(made.manifest.block_count))))
        sink.sync()
        yield sink


@pytest.mark.parametrize("change", [_remove, _rename_over, _truncate, _truncate_and_extend])
def test_a_file_that_another_program_changes_is_no_success(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """The descriptor still reads right, or the disk would be blamed for what is missing."""
    path = tmp_path / "target.raw"
    with _all_written(path) as sink:
        change(path)
        with pytest.raises(TargetReplacedError, match="find that program"):
            sink.commit()


def test_a_truncated_file_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "target.raw"
    with _all_written(path) as sink:
        _truncate(path)
        with pytest.raises(TargetReplacedError, match=f"{path} was truncated by another program"):
            sink.verify(np.arange(20, 40))


def test_a_file_that_is_replaced_during_the_commit_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "target.raw"
    with _all_written(path) as sink:
        commit = sink.commit_last.commit

        def commit_and_rename(require_all_right: Callable[[], None]) -> None:
            commit(require_all_right)
            _rename_over(path)

        monkeypatch.setattr(sink.commit_last, "commit", commit_and_rename)
        with pytest.raises(TargetReplacedError, match="removed, moved or replaced"):
            sink.commit()


def test_stored_zeros_may_be_in_a_hole(tmp_path: Path) -> None:
    """Another packer may store a block of zeros, and a sparse file holds it already."""
    zeros = bytes(BLOCK_BYTES)
    made = make_image("d" * 80, frames={FREE: _frame(zeros)}, raw_hashes={FREE: block_hash(zeros)})
    path = tmp_path / "target.raw"
    with open_target(path, raw_bytes=len(made.raw)) as target, BlockSink(target, made.manifest) as sink:
        sink.prepare()
        sink.write_blocks(_blocks(made, [block for block in range(80) if block != FREE]))
        sink.commit()
    assert path.read_bytes()[FREE * BLOCK_BYTES :][:BLOCK_BYTES] == zeros
