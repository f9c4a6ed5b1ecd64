"""Writing to a file: the right bytes at the right place, holes for zeros, and no failure overlooked."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from protocol.constants import MIB
from protocol.errors import StorageError
from protocol.image.manifest import BlockKind
from receiver.disk import syscalls, zeroing
from receiver.disk.aligned_buffers import aligned_memory
from receiver.disk.target import Target
from receiver.disk.verifier import Verifier
from receiver.disk.writer import (
    BUFFER_BYTES,
    BUFFER_COUNT_MAX,
    WRITEBACK_BYTES,
    WRITEBACK_WINDOWS_MAX,
    DiskWriter,
    WriteMode,
)
from receiver.target.open_target import open_target
from tests.support.disks.disk_images import BLOCK_BYTES, MadeImage, allocated_bytes, make_image
from tests.support.disks.disk_writing import random_pieces, write_pieces, write_runs
from tests.support.network.lab import LIMIT_S
from tests.support.programs.descriptors import descriptors

KINDS = "drzzzrdzuurdddzdzr"


@pytest.fixture(params=WriteMode)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> WriteMode:
    """Return each way of writing that the filesystem of temporary files supports."""
    mode: WriteMode = request.param
    if mode is WriteMode.PAGE_CACHE:
        monkeypatch.setattr(syscalls, "direct_alignment_bytes", lambda _fd: 0)
    return mode


def _write(made: MadeImage, path: Path) -> None:
    """Write, flush and verify a whole image."""
    manifest = made.manifest
    with open_target(path, raw_bytes=manifest.raw_bytes) as target, DiskWriter(target, manifest) as writer:
        target.prepare(0)
        writer.zero_blocks(np.flatnonzero(manifest.kind == BlockKind.ZERO))
        write_runs(writer, made)
        stored = np.flatnonzero(manifest.stored_mask).tolist()
        assert writer.bytes_written == sum(manifest.raw_length(block) for block in stored)
        target.sync()
        assert Verifier(target.read_back, manifest).verify_blocks(np.arange(manifest.block_count)).size == 0


TAILS = [
    (tail, tail_bytes)
    for tail in "drz"
    for tail_bytes in (511, 512, 4095, 4097, BLOCK_BYTES - 1, BLOCK_BYTES)
]


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize(("tail", "tail_bytes"), [*TAILS, ("r", 1), ("z", 1)])
def test_blocks_in_any_order_make_the_disk(tmp_path: Path, tail: str, tail_bytes: int) -> None:
    made = make_image(KINDS + tail, tail_bytes=tail_bytes)
    _write(made, tmp_path / "target.raw")
    assert (tmp_path / "target.raw").read_bytes() == made.raw


@pytest.mark.parametrize("block_bytes", [1 << 18, 1 << 22])
def test_large_blocks(tmp_path: Path, block_bytes: int) -> None:
    made = make_image("zdrd", block_bytes=block_bytes, tail_bytes=block_bytes // 2 + 7)
    with (
        open_target(tmp_path / "target.raw", raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        target.prepare(0)
        write_runs(writer, made, blocks_max=1)
    assert (tmp_path / "target.raw").read_bytes() == made.raw


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_at_any_place(tmp_path: Path, seed: int) -> None:
    """Direct and cached writes lie beside and over each other, and none may bring back older bytes."""
    rng = random.Random(seed)
    size = 3 * MIB + rng.randrange(8192)
    made = make_image("z", tail_bytes=1000)
    path = tmp_path / "target.raw"
    content = bytearray(size)
    with open_target(path, raw_bytes=size) as target, DiskWriter(target, made.manifest) as writer:
        target.prepare(0)
        for _ in range(6):
            write_pieces(writer, content, random_pieces(rng, size, 40), rng)
            assert path.read_bytes() == content
            target.sync()
            assert _read_back(target, size) == content
    assert path.read_bytes() == content


def _read_back(target: Target, size: int) -> bytes:
    memory = aligned_memory(-(-size // 4096) * 4096)
    assert target.read_back.read_into(memory, 0) == size
    return bytes(memory[:size])


def test_a_sparse_image_stays_sparse(tmp_path: Path) -> None:
    path = tmp_path / "target.raw"
    made = make_image("z" * 200 + "r" + "z" * 200, tail_bytes=1000)
    _write(made, path)
    assert allocated_bytes(path) <= 2 * BLOCK_BYTES


def test_zeros_replace_the_content_of_an_old_file(tmp_path: Path) -> None:
    """Old content must not remain where the new image has zeros; its space is released."""
    path = tmp_path / "target.raw"
    made = make_image("z" * 20 + "rdz", tail_bytes=1000)
    path.write_bytes(b"\xff" * len(made.raw))
    _write(made, path)
    assert path.read_bytes() == made.raw
    assert allocated_bytes(path) <= 3 * BLOCK_BYTES


def test_no_byte_beyond_the_zeros_is_touched(tmp_path: Path) -> None:
    """A file that is longer than the image keeps its end until it is cut off."""
    path = tmp_path / "target.raw"
    made = make_image("zz", tail_bytes=1000)
    path.write_bytes(b"\xff" * (3 * BLOCK_BYTES))
    with (
        open_target(path, raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        writer.zero_blocks(np.array([0, 1]))
    assert path.read_bytes() == made.raw + b"\xff" * (3 * BLOCK_BYTES - len(made.raw))


def test_a_hole_isn_t_written(tmp_path: Path) -> None:
    """Zeroing an empty file costs nothing at any size."""
    path = tmp_path / "target.raw"
    made = make_image("z" * 50)
    _write(made, path)
    assert allocated_bytes(path) == 0


def test_unused_blocks_are_left_alone_or_discarded(tmp_path: Path) -> None:
    path = tmp_path / "target.raw"
    made = make_image("ruur")
    path.write_bytes(b"\xee" * len(made.raw))
    _write(made, path)
    assert path.read_bytes()[BLOCK_BYTES : 3 * BLOCK_BYTES] == b"\xee" * (2 * BLOCK_BYTES)
    with (
        open_target(path, raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        writer.discard_blocks(np.array([1, 2]))
    assert path.read_bytes() == made.raw
    assert allocated_bytes(path) <= 2 * BLOCK_BYTES


def test_only_unused_blocks_are_discarded_and_only_zero_blocks_zeroed(tmp_path: Path) -> None:
    made = make_image("ruzd")
    with (
        open_target(tmp_path / "target.raw", raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        for call in (writer.discard_blocks, writer.zero_blocks):
            with pytest.raises(AssertionError):
                call(np.arange(4))


def _unsupported(*_arguments: object) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.mark.parametrize("missing", [["punch_hole"], ["punch_hole", "zero_file_range"]])
def test_a_filesystem_without_holes_gets_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    for name in missing:
        monkeypatch.setattr(syscalls, name, _unsupported)
    path = tmp_path / "target.raw"
    made = make_image("zrzzu", tail_bytes=BLOCK_BYTES)
    path.write_bytes(b"\xee" * len(made.raw))
    with (
        open_target(path, raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        writer.zero_range(1000, 3 * BLOCK_BYTES + 17)
        writer.discard_blocks(np.array([4]))
        assert writer.bytes_written == (3 * BLOCK_BYTES + 17 - 1000 if len(missing) == 2 else 0)
    content = path.read_bytes()
    assert content.count(b"\0") == 3 * BLOCK_BYTES + 17 - 1000
    assert content[1000 : 3 * BLOCK_BYTES + 17].count(b"\0") == 3 * BLOCK_BYTES + 17 - 1000


def test_a_slow_device_is_zeroed_in_short_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zeroing call can't be interrupted: a long one would keep the agent from stopping for minutes."""
    size, now_s, rate = 2048 * MIB, 0.0, 1000.0 * MIB
    lengths: list[int] = []

    def punch(_fd: int, _offset: int, length: int) -> None:
        nonlocal now_s
        now_s += length / rate
        lengths.append(length)

    monkeypatch.setattr(syscalls, "punch_hole", punch)
    monkeypatch.setattr(syscalls, "next_data", lambda _fd, offset: offset)
    monkeypatch.setattr(zeroing, "time", SimpleNamespace(monotonic=lambda: now_s))
    made = make_image("z")
    with (
        open_target(tmp_path / "target.raw", raw_bytes=size) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        writer.zero_range(0, size)
        assert sum(lengths) == size
        assert max(lengths) == zeroing.STEP_BYTES_MAX
        rate = 8.0 * MIB
        lengths.clear()
        writer.zero_range(0, size)
        assert sum(lengths) == size
        assert lengths[-1] == zeroing.STEP_BYTES_MIN


# -- failures -------------------------------------------------------------------------------------------------


class _Disk:
    """A layer between the writer and the kernel's ``pwrite``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
        self.calls: list[tuple[bool, int, int]] = []
        self.answer: Callable[[bool, int, int], int | None] = lambda _direct, _length, _offset: None
        real = os.pwrite

        def pwrite(fd: int, data: memoryview, offset: int) -> int:
            is_direct = fd != target.fd
            self.calls.append((is_direct, len(data), offset))
            length = self.answer(is_direct, len(data), offset)
            return real(fd, data if length is None else data[:length], offset)

        monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.fixture
def made() -> MadeImage:
    return make_image("rrrrrrru", tail_bytes=5000)


def _all_at_once(writer: DiskWriter, made: MadeImage) -> None:
    with writer.borrow_buffer() as buffer:
        buffer[: len(made.raw)] = made.raw
        writer.write(0, buffer[: len(made.raw)])


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("length", [512, 4096, 5000, 65536])
def test_short_writes_are_continued(
    tmp_path: Path, made: MadeImage, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """A device that accepts only a part of a write gets the rest."""
    path = tmp_path / "target.raw"
    with (
        open_target(path, raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        target.prepare(0)
        disk = _Disk(monkeypatch, target)
        if length < 4096:
            # A direct write can't end within a page: the rest goes through the page cache.
            disk.answer = lambda direct, wanted, _offset: None if direct else min(wanted, length)
        else:
            disk.answer = lambda _direct, wanted, _offset: min(wanted, length // 4096 * 4096)
        _all_at_once(writer, made)
        assert writer.bytes_written == len(made.raw)
    assert path.read_bytes() == made.raw


def test_a_direct_write_that_ends_within_a_page_continues_through_the_cache(
    tmp_path: Path, made: MadeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "target.raw"
    real = os.pwrite
    with (
        open_target(path, raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        target.prepare(0)

        def pwrite(fd: int, data: memoryview, offset: int) -> int:
            if fd == target.fd:
                return real(fd, data, offset)
            return real(target.fd, data[:10000], offset)  # a network filesystem may

        monkeypatch.setattr(os, "pwrite", pwrite)
        _all_at_once(writer, made)
    assert path.read_bytes() == made.raw


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_filesystem_that_refuses_direct_writes_gets_them_through_the_cache(
    tmp_path: Path, made: MadeImage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "target.raw"
    with (
        open_target(path, raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        target.prepare(0)
        if writer.write_mode is not WriteMode.DIRECT:
            pytest.skip("no direct writes on the filesystem of temporary files")
        disk = _Disk(monkeypatch, target)

        def refuse(direct: bool, _length: int, _offset: int) -> None:
            if direct:
                raise OSError(code, os.strerror(code))

        disk.answer = refuse
        _all_at_once(writer, made)
        _all_at_once(writer, made)
        assert writer.write_mode is WriteMode.PAGE_CACHE
        assert [direct for direct, _, _ in disk.calls].count(True) == 1
        target.sync()
    assert path.read_bytes() == made.raw


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, 0])
def test_a_failed_write_is_final(
    tmp_path: Path, made: MadeImage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A retry could "succeed" on a disk that lost earlier writes."""
    with (
        open_target(tmp_path / "target.raw", raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        target.prepare(0)
        disk = _Disk(monkeypatch, target)

        def fail(_direct: bool, _length: int, _offset: int) -> int:
            if code:
                raise OSError(code, os.strerror(code))
            return 0

        disk.answer = fail
        expected = os.strerror(code) if code else "takes no more bytes"
        with pytest.raises(StorageError, match=rf"at byte 0 failed: .*{expected}.* incomplete"):
            _all_at_once(writer, made)
        assert len(disk.calls) == 1
        disk.answer = lambda _direct, _length, _offset: None
        for call in (
            lambda: _all_at_once(writer, made),
            lambda: writer.zero_range(0, 10),
            lambda: writer.discard_blocks(np.array([7])),
            target.sync,
        ):
            with pytest.raises(StorageError, match="incomplete"):
                call()
        assert len(disk.calls) == 1
        assert writer.bytes_written == 0


def test_a_slow_disk_never_has_minutes_of_dirty_pages_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final flush finds little to do: writers wait for earlier writeback."""
    monkeypatch.setattr(syscalls, "direct_alignment_bytes", lambda _fd: 0)
    started: list[tuple[int, int]] = []
    waited: list[tuple[int, int]] = []
    monkeypatch.setattr(
        syscalls, "start_writeback", lambda _fd, start, length: started.append((start, length))
    )
    monkeypatch.setattr(
        syscalls, "wait_for_writeback", lambda _fd, start, length: waited.append((start, length))
    )
    size = (WRITEBACK_WINDOWS_MAX + 5) * WRITEBACK_BYTES
    with (
        open_target(tmp_path / "target.raw", raw_bytes=size) as target,
        DiskWriter(target, make_image("r").manifest) as writer,
    ):
        target.prepare(0)
        piece = memoryview(bytes(MIB))
        for offset in range(0, size, MIB):
            writer.write(offset, piece)
            dirty = offset + MIB - sum(length for _, length in waited)
            assert dirty <= (WRITEBACK_WINDOWS_MAX + 1) * WRITEBACK_BYTES
    assert started == [(start, WRITEBACK_BYTES) for start in range(0, size, WRITEBACK_BYTES)]
    assert waited == started[:5]


def test_pages_that_were_lost_on_their_way_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports lost pages once, to the caller that waits for them."""

    def lost(*_arguments: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(syscalls, "direct_alignment_bytes", lambda _fd: 0)
    monkeypatch.setattr(syscalls, "wait_for_writeback", lost)
    size = (WRITEBACK_WINDOWS_MAX + 1) * WRITEBACK_BYTES
    with (
        open_target(tmp_path / "target.raw", raw_bytes=size) as target,
        DiskWriter(target, make_image("r").manifest) as writer,
    ):
        target.prepare(0)
        piece = memoryview(bytes(WRITEBACK_BYTES))
        for offset in range(0, size - WRITEBACK_BYTES, WRITEBACK_BYTES):
            writer.write(offset, piece)
        with pytest.raises(StorageError, match="incomplete"):
            writer.write(size - WRITEBACK_BYTES, piece)
        with pytest.raises(StorageError, match="incomplete"):
            target.sync()


# -- threads and resources ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("mode")
def test_many_threads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "target.raw"
    made = make_image("drzd" * 80, tail_bytes=777)
    failures: list[BaseException] = []
    with (
        open_target(path, raw_bytes=made.manifest.raw_bytes) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        target.prepare(0)

        def run(part: int) -> None:
            rng = np.random.default_rng(part)
            try:
                for start in rng.permutation(
                    np.arange(part * BLOCK_BYTES, len(made.raw), 4 * BLOCK_BYTES)
                ).tolist():
                    stop = min(start + BLOCK_BYTES, len(made.raw))
                    with writer.borrow_buffer() as buffer:
                        buffer[: stop - start] = made.raw[start:stop]
                        writer.write(start, buffer[: stop - start])
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=run, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert writer.bytes_written == len(made.raw)
    assert path.read_bytes() == made.raw


def test_more_threads_than_buffers_wait_for_one(tmp_path: Path) -> None:
    """The receiver's memory is bounded for any number of threads."""
    made = make_image("r")
    lent: set[int] = set()
    with (
        open_target(tmp_path / "target.raw", raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        all_lent, go_on = threading.Semaphore(0), threading.Event()

        def run() -> None:
            with writer.borrow_buffer() as buffer:
                assert len(buffer) == BUFFER_BYTES
                address = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
                assert address % 4096 == 0
                lent.add(address)
                all_lent.release()
                go_on.wait(LIMIT_S)

        threads = [threading.Thread(target=run) for _ in range(3 * BUFFER_COUNT_MAX)]
        for thread in threads:
            thread.start()
        for _ in range(BUFFER_COUNT_MAX):
            assert all_lent.acquire(timeout=LIMIT_S)
        go_on.set()
        for thread in threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()
    assert len(lent) == BUFFER_COUNT_MAX


def test_a_buffer_comes_back_after_a_failure(tmp_path: Path, made: MadeImage) -> None:
    def fail_with(writer: DiskWriter) -> None:
        with writer.borrow_buffer():
            raise KeyboardInterrupt

    with (
        open_target(tmp_path / "target.raw", raw_bytes=len(made.raw)) as target,
        DiskWriter(target, made.manifest) as writer,
    ):
        for _ in range(2 * BUFFER_COUNT_MAX):
            with pytest.raises(KeyboardInterrupt):
                fail_with(writer)


def test_descriptors_are_closed(tmp_path: Path, made: MadeImage) -> None:
    before = descriptors()
    _write(made, tmp_path / "target.raw")
    assert not descriptors() - before
    with open_target(tmp_path / "target.raw", raw_bytes=len(made.raw)) as target:
        DiskWriter(target, made.manifest)  # never closed explicitly
    assert not descriptors() - before
