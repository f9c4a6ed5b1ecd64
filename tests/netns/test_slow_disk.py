"""The lab's slow disk behaves as the tests that use it assume."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.constants import MIB
from receiver.disk import syscalls
from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, SlowDisk, loop_over, slow_disk
from tests.support.disks.write_log import Kind, PowerCut, PowerCuts, read_log
from tests.support.network.lab import wait_until

pytestmark = pytest.mark.needs_root

CONTENT = bytes(range(256)) * (MIB // 256)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    with slow_disk(tmp_path, Behaviour()) as disk:
        yield disk


@pytest.fixture
def fd(disk: SlowDisk) -> Iterator[int]:
    """Open a new file on the disk for writing."""
    fd = os.open(disk.directory / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    yield fd
    os.close(fd)


def test_without_a_behaviour_it_is_a_plain_directory(disk: SlowDisk, fd: int) -> None:
    assert os.pwrite(fd, CONTENT, 0) == MIB
    os.ftruncate(fd, 4 * MIB)
    os.fdatasync(fd)
    assert (disk.storage / "file").read_bytes() == CONTENT + bytes(3 * MIB)
    direct = os.open(disk.directory / "file", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, MIB) as page_aligned:
        assert os.preadv(direct, [page_aligned], 0) == MIB
        assert page_aligned[:] == CONTENT
    os.close(direct)
    assert [path.name for path in disk.directory.iterdir()] == ["file"]
    assert os.lseek(fd, 0, os.SEEK_HOLE) == MIB
    (disk.directory / "file").unlink()
    assert not (disk.storage / "file").exists()


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_error_strikes_once_after_some_bytes(disk: SlowDisk, fd: int, error: str) -> None:
    fault = Fault(Operation.WRITE, Action.ERROR, error=error, after_bytes=MIB, count=1)
    disk.set_behaviour(Behaviour(faults=(fault,)))
    os.pwrite(fd, CONTENT, 0)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, error))):
        os.pwrite(fd, CONTENT, MIB)
    assert os.pwrite(fd, CONTENT, MIB) == MIB


def test_short_and_lost_writes(disk: SlowDisk, fd: int) -> None:
    faults = (Fault(Operation.WRITE, Action.SHORT, count=1), Fault(Operation.WRITE, Action.LOSE))
    disk.set_behaviour(Behaviour(faults=faults))
    assert os.pwrite(fd, CONTENT, 0) == MIB // 2
    assert os.pwrite(fd, CONTENT[: MIB // 2], MIB // 2) == MIB // 2
    assert (disk.storage / "file").read_bytes() == CONTENT[: MIB // 2]


def test_flush_fails(disk: SlowDisk, fd: int) -> None:
    disk.set_behaviour(Behaviour(faults=(Fault(Operation.FLUSH, Action.ERROR),)))
    with pytest.raises(OSError, match="Input/output error"):
        os.fdatasync(fd)


def test_hang_ends_when_the_behaviour_is_set(disk: SlowDisk, fd: int) -> None:
    disk.set_behaviour(Behaviour(faults=(Fault(Operation.WRITE, Action.HANG),)))
    writer = threading.Thread(target=os.pwrite, args=(fd, CONTENT, 0))
    writer.start()
    wait_until("the write hangs", lambda: disk.counts()["hanging"] or not writer.is_alive())
    assert writer.is_alive()
    disk.set_behaviour(Behaviour())
    writer.join()
    counts = disk.counts()
    assert (counts["write"], counts["write_count"], counts["struck"], counts["hanging"]) == (MIB, 1, 1, 0)


def test_invalid_behaviours_are_refused(disk: SlowDisk) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        os.setxattr(disk.directory, "user.behaviour", b'{"speed": 1}')


def read_direct(path: Path, length: int) -> bytes:
    """Read the medium, bypassing the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as page_aligned:
            assert os.preadv(fd, [page_aligned], 0) == length
            return page_aligned[:]
    finally:
        os.close(fd)


def differing_bits(one: bytes, other: bytes) -> list[int]:
    return [index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


def test_a_flipped_bit_is_on_the_medium_and_not_in_the_page_cache(disk: SlowDisk, fd: int) -> None:
    """A read-back answered from the page cache would hide the fault."""
    fault = Fault(Operation.WRITE, Action.FLIP, count=1, start_bytes=5000, stop_bytes=5002, seed=3)
    disk.set_behaviour(Behaviour(faults=(fault,)))
    os.pwrite(fd, CONTENT, 0)
    assert os.pread(fd, MIB, 0) == CONTENT
    stored = read_direct(disk.directory / "file", MIB)
    (at,) = differing_bits(stored, CONTENT)
    assert 5000 <= at < 5002
    assert (stored[at] ^ CONTENT[at]).bit_count() == 1
    os.pwrite(fd, CONTENT, 0)
    assert read_direct(disk.directory / "file", MIB) == CONTENT


def test_a_misdirected_write_lands_elsewhere(disk: SlowDisk, fd: int) -> None:
    os.ftruncate(fd, 2 * MIB)
    fault = Fault(Operation.WRITE, Action.MISDIRECT, count=1, shift_bytes=MIB)
    disk.set_behaviour(Behaviour(faults=(fault,)))
    assert os.pwrite(fd, CONTENT, 0) == MIB
    assert read_direct(disk.directory / "file", 2 * MIB) == bytes(MIB) + CONTENT


def test_faults_affect_only_their_range_and_calls(disk: SlowDisk, fd: int) -> None:
    """Faults are limited to a range of the disk and start after a number of calls."""
    os.ftruncate(fd, 2 * MIB)
    fault = Fault(Operation.WRITE, Action.ERROR, after_count=1, start_bytes=MIB)
    disk.set_behaviour(Behaviour(faults=(fault,)))
    os.pwrite(fd, CONTENT, MIB)
    os.pwrite(fd, CONTENT, 0)
    with pytest.raises(OSError, match="Input/output error"):
        os.pwrite(fd, CONTENT, MIB)
    assert disk.counts()["struck"] == 1


def test_a_block_device_on_the_disk_has_the_same_faults(disk: SlowDisk, fd: int) -> None:
    os.ftruncate(fd, MIB)
    fault = Fault(Operation.WRITE, Action.FLIP, start_bytes=4096, stop_bytes=8192)
    with loop_over(disk.directory / "file") as device:
        disk.set_behaviour(Behaviour(faults=(fault,)))
        device.write_bytes(CONTENT)
        with device.open("rb", buffering=0) as opened:
            os.fsync(opened.fileno())
        (at,) = differing_bits(read_direct(device, MIB), CONTENT)
        assert 4096 <= at < 8192
        disk.set_behaviour(Behaviour(faults=(Fault(Operation.FLUSH, Action.ERROR),)))
        with device.open("r+b", buffering=0) as opened, pytest.raises(OSError, match="Input/output error"):
            os.fsync(opened.fileno())


def test_the_log_rebuilds_the_state_after_a_power_cut(disk: SlowDisk, fd: int, tmp_path: Path) -> None:
    os.pwrite(fd, b"old" * 4096, 0)
    base = (disk.storage / "file").read_bytes()
    log_path = tmp_path / "log"
    disk.set_behaviour(Behaviour(log_path=str(log_path)))
    os.pwrite(fd, b"a" * 4096, 0)
    os.ftruncate(fd, 16384)
    os.fdatasync(fd)
    syscalls.punch_hole(fd, 4096, 4096)
    os.pwrite(fd, b"b" * 4096, 12288)
    entries = read_log(log_path)
    kinds = [Kind.WRITE, Kind.TRUNCATE, Kind.FLUSH, Kind.PUNCH, Kind.WRITE]
    assert [entry.kind for entry in entries] == kinds
    cuts = PowerCuts(base, entries)
    assert (cuts.flush_count, cuts.entry_count) == (1, 4)
    flushed = b"a" * 4096 + base[4096:] + bytes(4096)
    expected = {
        PowerCut(0, ()): base,
        PowerCut(0, (0,)): b"a" * 4096 + base[4096:],
        PowerCut(0, (0,), 512): b"a" * 512 + base[512:],
        PowerCut(0, (0, 1)): flushed,
        PowerCut(1, ()): flushed,
        PowerCut(1, (0,)): b"a" * 4096 + bytes(4096) + base[8192:] + bytes(4096),
        PowerCut(1, (1,)): b"a" * 4096 + base[4096:] + b"b" * 4096,
        PowerCut(1, (0, 1)): (disk.storage / "file").read_bytes(),
    }
    assert dict(cuts.disks(expected)) == expected
    assert {*cuts.at_flushes(), *cuts.suffixes_dropped()} <= expected.keys()
    drawn = [*cuts.torn(random.Random(1), 9), *cuts.reordered(random.Random(1), 9)]
    assert all(len(left) <= 16384 for _, left in cuts.disks(drawn))
