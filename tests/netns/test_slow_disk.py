"""The lab's slow disk does what the tests on it take for granted."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.constants import MIB
from tests.slow_disk import Action, Behaviour, Fault, Operation, SlowDisk, slow_disk

pytestmark = pytest.mark.needs_root

CONTENT = bytes(range(256)) * (MIB // 256)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    with slow_disk(tmp_path, Behaviour()) as disk:
        yield disk


@pytest.fixture
def fd(disk: SlowDisk) -> Iterator[int]:
    """A new file on the disk, opened for writing."""
    fd = os.open(disk.directory / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    yield fd
    os.close(fd)


def test_it_is_a_plain_directory_otherwise(disk: SlowDisk, fd: int) -> None:
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
    while not disk.counts()["hanging"]:
        assert writer.is_alive()
    disk.set_behaviour(Behaviour())
    writer.join()
    assert disk.counts() == {"read": 0, "write": MIB, "flush": 0, "hanging": 0}


def test_nonsense_is_refused(disk: SlowDisk) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        os.setxattr(disk.directory, "user.behaviour", b'{"speed": 1}')
