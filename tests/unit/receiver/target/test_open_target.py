"""Opening targets and refusing: a target that mustn't be overwritten stays unchanged."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import (
    StorageError,
    TargetError,
    TargetInUseError,
    TargetIsImageError,
    TargetTooSmallError,
)
from receiver.disk.read_back import ReadBackMode, open_for_comparison, open_read_back
from receiver.disk.writer import DiskWriter
from receiver.target.open_target import open_target
from tests.support.disks.disk_images import BLOCK_BYTES, make_image

RAW_BYTES = 3 * BLOCK_BYTES
IMPOSSIBLE_BYTES = 1 << 62


@pytest.fixture
def existing(tmp_path: Path) -> Path:
    path = tmp_path / "target.raw"
    path.write_bytes(b"precious" * 1000)
    return path


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Run as a user without root's privileges, even if the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def _make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(("make", "kind"), [(Path.mkdir, "directory"), (_make_fifo, "pipe")])
def test_a_path_that_is_no_disk_is_refused(tmp_path: Path, make, kind: str) -> None:
    path = tmp_path / "target"
    make(path)
    with pytest.raises(TargetError, match=kind):
        open_target(path, raw_bytes=RAW_BYTES)


def test_a_character_device_is_refused() -> None:
    with pytest.raises(TargetError, match="/dev/zero is a character device"):
        open_target(Path("/dev/zero"), raw_bytes=RAW_BYTES)


def test_a_mistyped_disk_name_does_not_become_a_file_in_dev() -> None:
    path = Path("/dev/diskcast-no-such-disk")
    with pytest.raises(TargetError, match="there is no device"):
        open_target(path, raw_bytes=RAW_BYTES)
    assert not path.exists()


def test_a_missing_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="there is no directory"):
        open_target(tmp_path / "missing" / "target.raw", raw_bytes=RAW_BYTES)
    assert not (tmp_path / "missing").exists()


def test_a_parent_that_is_a_file_is_refused(existing: Path) -> None:
    with pytest.raises(TargetError):
        open_target(existing / "target.raw", raw_bytes=RAW_BYTES)


@pytest.mark.parametrize("alias", ["same", "hard link", "symbolic link"])
def test_the_image_itself_is_refused(tmp_path: Path, existing: Path, alias: str) -> None:
    path = existing
    if alias == "hard link":
        (path := tmp_path / "alias").hardlink_to(existing)
    elif alias == "symbolic link":
        (path := tmp_path / "alias").symlink_to(existing)
    with pytest.raises(TargetIsImageError, match="choose another target"):
        open_target(path, raw_bytes=RAW_BYTES, image_path=existing)
    assert existing.read_bytes() == b"precious" * 1000


@pytest.fixture
def write_protected(existing: Path) -> Path:
    """Create a file that not even its owner may write."""
    existing.chmod(0o444)
    return existing


def test_a_file_without_write_permission_is_refused(write_protected: Path, unprivileged: None) -> None:
    with pytest.raises(TargetError, match="permission denied"):
        open_target(write_protected, raw_bytes=RAW_BYTES)


def test_opening_alone_changes_nothing(tmp_path: Path, existing: Path) -> None:
    """A cast that can't be joined must not cost the old content."""
    new = tmp_path / "new.raw"
    with open_target(existing, raw_bytes=RAW_BYTES), open_target(new, raw_bytes=RAW_BYTES):
        assert existing.read_bytes() == b"precious" * 1000
    assert existing.read_bytes() == b"precious" * 1000
    assert not new.exists()


def test_too_little_room_changes_nothing(tmp_path: Path, existing: Path) -> None:
    new = tmp_path / "new.raw"
    for path in (existing, new):
        with open_target(path, raw_bytes=RAW_BYTES) as target, pytest.raises(TargetError, match="make room"):
            target.prepare(data_bytes=IMPOSSIBLE_BYTES)
    assert existing.read_bytes() == b"precious" * 1000
    assert not new.exists()


def test_a_file_that_the_filesystem_cannot_hold_changes_nothing(tmp_path: Path, existing: Path) -> None:
    new = tmp_path / "new.raw"
    for path in (existing, new):
        with (
            open_target(path, raw_bytes=IMPOSSIBLE_BYTES) as target,
            pytest.raises(TargetError, match="another filesystem"),
        ):
            target.prepare(data_bytes=0)
    assert existing.read_bytes() == b"precious" * 1000
    assert not new.exists()


@pytest.mark.parametrize("old_bytes", [0, 1000, RAW_BYTES, 2 * RAW_BYTES])
def test_a_prepared_file_has_the_size_of_the_image(tmp_path: Path, old_bytes: int) -> None:
    path = tmp_path / "target.raw"
    path.write_bytes(b"x" * old_bytes)
    with open_target(path, raw_bytes=RAW_BYTES) as target:
        assert target.size_bytes == old_bytes
        target.prepare(data_bytes=RAW_BYTES)
        assert path.stat().st_size == max(RAW_BYTES, old_bytes)
        target.cut_off()
    assert path.stat().st_size == RAW_BYTES


def test_a_new_file_stays_once_it_was_prepared(tmp_path: Path) -> None:
    path = tmp_path / "target.raw"
    with open_target(path, raw_bytes=RAW_BYTES) as target:
        target.prepare(data_bytes=RAW_BYTES)
    assert stat.S_ISREG(path.stat().st_mode)
    assert path.stat().st_size == RAW_BYTES


def test_after_a_failed_write_nothing_succeeds_any_more(tmp_path: Path) -> None:
    """The kernel reports lost pages once: a flush after a failed one may "succeed" on a disk full of gaps."""
    made = make_image("rrr")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_target(tmp_path / "target.raw", raw_bytes=RAW_BYTES) as target:
        target.prepare(data_bytes=RAW_BYTES)
        writer = DiskWriter(target, made.manifest)
        writer.write(0, memoryview(made.stored[0]))
        # The limit is within block 1: the kernel writes a part of it and then refuses.
        resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES + 1000, limits[1]))
        try:
            with pytest.raises(StorageError, match=os.strerror(errno.EFBIG)):
                writer.write(BLOCK_BYTES, memoryview(made.stored[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        for call in (
            target.sync,
            target.check,
            lambda: target.prepare(0),
            lambda: writer.write(2 * BLOCK_BYTES, memoryview(made.stored[2])),
            lambda: writer.zero_range(0, BLOCK_BYTES),
        ):
            with pytest.raises(StorageError, match="incomplete"):
                call()


def test_comparison_refuses_a_smaller_target(existing: Path) -> None:
    with pytest.raises(TargetTooSmallError, match=rf"\(8000 bytes\).*\({RAW_BYTES} bytes\)"):
        open_for_comparison(existing, RAW_BYTES)


def test_a_filesystem_without_direct_reads_is_read_with_its_cache_dropped() -> None:
    with open_read_back(Path("/sys/kernel/uevent_seqnum")) as read_back:
        assert read_back.mode is ReadBackMode.CACHE_DROPPED


def test_two_programs_never_write_the_same_file(existing: Path) -> None:
    """Otherwise both images are mixed in it, and both agents may report success."""
    with open_target(existing, raw_bytes=RAW_BYTES):
        with pytest.raises(TargetInUseError, match=r"locked by another program.*nothing was written"):
            open_target(existing, raw_bytes=RAW_BYTES)
        assert existing.read_bytes() == b"precious" * 1000
    open_target(existing, raw_bytes=RAW_BYTES).close()


def test_a_new_file_is_claimed_from_its_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "target.raw"
    with open_target(path, raw_bytes=RAW_BYTES), pytest.raises(TargetInUseError):
        open_target(path, raw_bytes=RAW_BYTES)
    assert not path.exists(), "nothing was prepared"
