"""Restoring to real block devices: sizes, sectors, mounts, lost flushes, and read-back past the page cache."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import (
    StorageError,
    TargetError,
    TargetIsImageError,
    TargetTooSmallError,
    VerificationError,
)
from protocol.image.manifest import BlockKind
from receiver.disk.read_back import ReadBack, ReadBackMode, open_for_comparison
from receiver.disk.verifier import Verifier
from receiver.restore.disk_progress import TextProgress
from receiver.restore.restore_image import compare, restore
from receiver.target.block_sink import BlockSink, Outcome
from receiver.target.open_target import open_target
from tests.support.disks.devices import loop_device, mounted
from tests.support.disks.disk_images import BLOCK_BYTES, MadeImage, make_image
from tests.support.network.lab import LIMIT_S, Program, diskcast_agent, run

pytestmark = pytest.mark.needs_root

MADE = make_image("drzzrzzd" * 8 + "zur", tail_bytes=12288)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_unused(content: bytes) -> bytes:
    start = MADE.manifest.block_bytes * 65
    return content[:start] + bytes(BLOCK_BYTES) + content[start + BLOCK_BYTES : len(MADE.raw)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return MADE.write(tmp_path / "made.dci")


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    """Create a disk that is larger than the image and full of other data."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xa5" * (len(MADE.raw) // 4096 * 4096 + (3 << 20)))
    return path


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_a_device_is_restored_and_beyond_the_image_only_old_tables_go(
    image: Path, backing: Path, sector_bytes: int
) -> None:
    with loop_device(backing, "--sector-size", str(sector_bytes)) as device:
        with Program(diskcast_agent("restore", image, "--target", device, "--json")) as program:
            assert program.wait(LIMIT_S) == 0, program.describe()
            assert program.result["ok"] is True
            assert program.result["raw_bytes"] == len(MADE.raw)
            assert program.result["readback_mode"] == "direct"
        with Program(diskcast_agent("compare", image, "--target", device, "--json")) as program:
            assert program.wait(LIMIT_S) == 0, program.describe()
    content = backing.read_bytes()
    assert _without_unused(content) == MADE.raw
    assert set(content[len(MADE.raw) : -(1 << 20)]) == {0xA5}
    assert not any(content[-(1 << 20) :]), "a backup GPT or RAID superblock of the disk's former life"


def test_a_smaller_device_is_refused_and_stays(tmp_path: Path, image: Path) -> None:
    backing = tmp_path / "small"
    backing.write_bytes(b"precious" * (len(MADE.raw) // 16 // 512 * 512))
    before = _digest(backing)
    with loop_device(backing) as device:
        for flow in (restore, compare):
            with pytest.raises(TargetTooSmallError, match=str(backing.stat().st_size)):
                flow(image, device, TextProgress())
    assert _digest(backing) == before


def test_a_device_one_sector_short_is_refused(tmp_path: Path, image: Path) -> None:
    backing = tmp_path / "small"
    backing.write_bytes(bytes(len(MADE.raw) - 512))
    with loop_device(backing) as device, pytest.raises(TargetTooSmallError):
        restore(image, device, TextProgress())


def test_a_mounted_device_is_refused_and_stays(tmp_path: Path, image: Path, backing: Path) -> None:
    run("mkfs.ext4", "-q", backing)
    with loop_device(backing) as device:
        with mounted(device, tmp_path / "mounted", "-o", "ro,noload"):
            before = _digest(backing)
            with pytest.raises(TargetError, match="in use: mounted"):
                restore(image, device, TextProgress())
            assert _digest(backing) == before
        restore(image, device, TextProgress())


def test_a_device_that_another_restore_writes_is_refused(image: Path, backing: Path) -> None:
    with loop_device(backing) as device, open_target(device, raw_bytes=len(MADE.raw)) as target:
        target.prepare(0)
        with pytest.raises(TargetError, match="in use"):
            restore(image, device, TextProgress())


def test_udev_does_not_probe_the_device_while_it_is_written(backing: Path) -> None:
    """A probe that reads at the moment of a direct write can make the next flush fail."""
    with loop_device(backing) as device, device.open("rb") as probe:
        with open_target(device, raw_bytes=len(MADE.raw)), pytest.raises(BlockingIOError):
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_read_only_device_is_refused(image: Path, backing: Path) -> None:
    with loop_device(backing, "--read-only") as device, pytest.raises(TargetError, match="read-only"):
        restore(image, device, TextProgress())


def test_a_file_on_a_read_only_filesystem_is_refused(tmp_path: Path, image: Path) -> None:
    with mounted("none", tmp_path / "full", "-t", "tmpfs") as point:
        (point / "old.raw").write_bytes(b"precious")
        run("mount", "-o", "remount,ro", point)
        for name in ("old.raw", "new.raw"):
            with pytest.raises(TargetError, match="read-only"):
                restore(image, point / name, TextProgress())
        assert [path.name for path in point.iterdir()] == ["old.raw"]


def test_a_device_that_holds_the_image_is_refused(tmp_path: Path, backing: Path) -> None:
    with loop_device(backing) as device:
        (tmp_path / "alias").symlink_to(device)
        node = tmp_path / "node"
        os.mknod(node, device.stat().st_mode, device.stat().st_rdev)
        for alias in (tmp_path / "alias", node):
            with pytest.raises(TargetIsImageError):
                open_target(device, raw_bytes=1000, image_path=alias)


def _write_all(made: MadeImage, sink: BlockSink) -> None:
    sink.prepare()
    sink.zero(np.flatnonzero(made.manifest.kind == BlockKind.ZERO))
    for block in np.flatnonzero(made.manifest.stored_mask).tolist():
        (outcome,) = sink.write_blocks([(block, memoryview(made.stored[block]))])
        assert outcome is not Outcome.WRONG


def _write_and_sync(made: MadeImage, sink: BlockSink) -> None:
    _write_all(made, sink)
    sink.sync()
    sink.commit()


@pytest.mark.parametrize("mode", ReadBackMode)
def test_read_back_sees_the_disk_and_not_the_page_cache(backing: Path, mode: ReadBackMode) -> None:
    """The cache has the written data while the disk has other data: only the disk counts."""
    with (
        loop_device(backing) as device,
        open_target(device, raw_bytes=len(MADE.raw)) as target,
        BlockSink(target, MADE.manifest) as sink,
    ):
        _write_and_sync(MADE, sink)
        in_cache = os.pread(target.fd, BLOCK_BYTES, 28 * BLOCK_BYTES)
        with backing.open("r+b") as file:
            file.seek(28 * BLOCK_BYTES + 100)
            file.write(b"rotten")
        cached = os.pread(target.fd, BLOCK_BYTES, 28 * BLOCK_BYTES)
        assert in_cache == cached == MADE.raw[28 * BLOCK_BYTES : 29 * BLOCK_BYTES]
        blocks = np.arange(MADE.manifest.block_count)
        if mode is ReadBackMode.DIRECT:
            assert target.readback_mode is mode
            assert sink.verify(blocks).tolist() == [28]
        else:
            with ReadBack(device, os.open(device, os.O_RDONLY), mode) as read_back:
                assert Verifier(read_back, MADE.manifest).verify_blocks(blocks).tolist() == [28]


def test_a_zero_block_of_a_device_is_read_back(backing: Path) -> None:
    with (
        loop_device(backing) as device,
        open_target(device, raw_bytes=len(MADE.raw)) as target,
        BlockSink(target, MADE.manifest) as sink,
    ):
        _write_and_sync(MADE, sink)
        with backing.open("r+b") as file:
            file.seek(27 * BLOCK_BYTES - 1)
            file.write(b"\x01")
        assert sink.verify(np.arange(MADE.manifest.block_count)).tolist() == [26]


def test_a_failed_flush_is_final(tmp_path: Path) -> None:
    """The disk can't store the cached pages: no later flush may report success."""
    made = make_image("r" * 128)
    with mounted("none", tmp_path / "thin", "-t", "tmpfs", "-o", "size=2m") as point:
        backing = point / "disk"
        with backing.open("wb") as file:
            file.truncate(len(made.raw))
        with (
            loop_device(backing) as device,
            open_target(device, raw_bytes=len(made.raw)) as target,
            BlockSink(target, made.manifest) as sink,
        ):
            with pytest.raises(StorageError, match="incomplete"):
                _write_and_sync(made, sink)
            for _ in range(2):
                with pytest.raises(StorageError, match="incomplete"):
                    sink.sync()
            with pytest.raises(StorageError, match="incomplete"):
                sink.verify(np.arange(3))


def test_a_filesystem_without_room_is_refused_before_writing(tmp_path: Path, image: Path) -> None:
    with mounted("none", tmp_path / "full", "-t", "tmpfs", "-o", "size=1m") as point:
        (point / "old.raw").write_bytes(b"precious")
        for name in ("old.raw", "new.raw"):
            with pytest.raises(TargetError, match="make room"):
                restore(image, point / name, TextProgress())
        assert [(path.name, path.read_bytes()) for path in point.iterdir()] == [("old.raw", b"precious")]


def test_an_old_file_counts_as_room(tmp_path: Path, image: Path) -> None:
    """Refreshing an old copy works on a filesystem that has no room for a second one."""
    with mounted("none", tmp_path / "full", "-t", "tmpfs", "-o", "size=3m") as point:
        path = point / "old.raw"
        path.write_bytes(b"\xff" * (5 << 19))
        restore(image, path, TextProgress())
        assert path.read_bytes() == MADE.raw


class _FillsUp(TextProgress):
    """Another program fills the filesystem between the check and the writing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start_phase(self, phase: str, total_bytes: int) -> None:
        if phase == "write":
            with contextlib.suppress(OSError), self.path.open("wb", buffering=0) as file:
                for _ in range(1000):
                    file.write(bytes(1 << 16))


@pytest.mark.parametrize("filesystem", ["tmpfs", "ext4"])
def test_a_disk_that_fills_up_while_writing_is_reported(tmp_path: Path, image: Path, filesystem: str) -> None:
    point = tmp_path / "full"
    with contextlib.ExitStack() as stack:
        if filesystem == "tmpfs":
            stack.enter_context(mounted("none", point, "-t", "tmpfs", "-o", "size=8m"))
        else:
            backing = tmp_path / "disk"
            with backing.open("wb") as file:
                file.truncate(16 << 20)
            run("mkfs.ext4", "-q", "-m", "0", backing)
            stack.enter_context(mounted(stack.enter_context(loop_device(backing)), point))
        with pytest.raises(StorageError, match=r"No space left.*incomplete: make room"):
            restore(image, point / "target.raw", _FillsUp(point / "other"))


def test_a_changed_device_differs(image: Path, backing: Path) -> None:
    with loop_device(backing) as device:
        restore(image, device, TextProgress())
        before = _digest(device)
        with open_for_comparison(device, len(MADE.raw)) as read_back:
            assert read_back.is_device
        with device.open("r+b") as disk:
            disk.seek(7 * BLOCK_BYTES)
            disk.write(b"x")
        with pytest.raises(VerificationError, match="block 7 "):
            compare(image, device, TextProgress())
        assert _digest(device) != before
