"""Restore and compare on files: a reported success is true, and every difference is named."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.errors import (
    ImageDamagedError,
    ImageError,
    ImageFormatError,
    StorageError,
    TargetIsImageError,
    TargetTooSmallError,
    VerificationError,
)
from protocol.image.block_codec import block_hash
from protocol.image.incomplete_marker import parse_marker_untrusted
from protocol.image.manifest import BlockKind
from receiver.disk.verifier import UNREADABLE_COUNT_MAX
from receiver.restore.disk_progress import Difference, TextProgress
from receiver.restore.image_source import open_image
from receiver.restore.restore_image import DIFFERENCES_SHOWN_MAX, compare, restore
from receiver.target.options import TargetOptions
from tests.support.disks.disk_images import BLOCK_BYTES, allocated_bytes, make_image

MADE = make_image("drzz" * 40 + "urd", tail_bytes=1234)


class Recorder(TextProgress):
    """Progress that records its calls and runs an action when a phase starts."""

    def __init__(self, on_begin: Callable[[str], None] = lambda _phase: None) -> None:
        self.on_begin = on_begin
        self.phases: list[str] = []
        self.total_bytes = 0
        self.done_bytes: list[int] = []
        self.shown: tuple[int, Sequence[Difference]] | None = None
        self.fields: dict[str, object] = {}

    def start_phase(self, phase: str, total_bytes: int) -> None:
        if self.done_bytes:
            assert self.done_bytes[-1] == self.total_bytes
        self.phases.append(phase)
        self.total_bytes, self.done_bytes = total_bytes, [0]
        self.on_begin(phase)

    def advance(self, done_bytes: int) -> None:
        assert self.done_bytes[-1] <= done_bytes <= self.total_bytes
        self.done_bytes.append(done_bytes)

    def differences(self, count: int, first: Sequence[Difference]) -> None:
        self.shown = (count, first)

    def result(self, fields: dict[str, object], text: str) -> None:
        self.fields = fields


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return MADE.write(tmp_path / "made.dci")


def _flip(path: Path, offset_bytes: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        octet = file.read(1)[0]
        file.seek(offset_bytes)
        file.write(bytes([octet ^ 1]))


@pytest.mark.parametrize("old", [None, b"", b"\xff" * (len(MADE.raw) // 2), b"\xff" * (len(MADE.raw) * 2)])
def test_a_restored_disk_equals_the_packed_one(tmp_path: Path, image: Path, old: bytes | None) -> None:
    target = tmp_path / "target.raw"
    if old is not None:
        target.write_bytes(old)
    recorder = Recorder()
    restore(image, target, recorder)
    content, unused = bytearray(target.read_bytes()), 160 * BLOCK_BYTES
    content[unused : unused + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    assert content == MADE.raw
    assert recorder.phases == ["zero", "write", "flush", "verify"]
    assert recorder.fields["raw_bytes"] == len(MADE.raw)
    assert recorder.fields["image_id"] == MADE.manifest.image_id.hex()
    if not old:
        assert allocated_bytes(target) <= len(MADE.raw) * 0.55
    compare(image, target, recorder)


def test_an_altered_block_is_named(tmp_path: Path, image: Path) -> None:
    _flip(image, MADE.stored_offset(41) + 100)
    with pytest.raises(
        ImageDamagedError, match=rf"block 41 \(byte {41 * BLOCK_BYTES}\).*copy the image again"
    ):
        restore(image, tmp_path / "target.raw", Recorder())


def test_corruption_after_writing_is_found(tmp_path: Path, image: Path) -> None:
    """A disk loses a confirmed write: without read-back, the machine would fail weeks later."""
    target = tmp_path / "target.raw"
    recorder = Recorder(lambda phase: _flip(target, 80 * BLOCK_BYTES + 7) if phase == "verify" else None)
    with pytest.raises(
        VerificationError, match=rf"block 80 \(byte {80 * BLOCK_BYTES}\) read back wrong 2 times"
    ):
        restore(image, target, recorder)
    assert recorder.shown == (1, [Difference(80, 80 * BLOCK_BYTES, BLOCK_BYTES)])
    assert not recorder.fields
    assert parse_marker_untrusted(target.read_bytes()[:512]) is not None, "it can't be taken for a whole disk"


def test_a_bit_that_flips_once_is_written_again(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "target.raw"
    flips = iter([80 * BLOCK_BYTES + 7])

    def flip_once(phase: str) -> None:
        if phase == "verify" and (at := next(flips, None)) is not None:
            _flip(target, at)

    recorder = Recorder(flip_once)
    restore(image, target, recorder)
    assert recorder.fields["blocks_rewritten"] == 1
    compare(image, target, Recorder())


def test_blocks_on_the_target_are_not_written_again(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "target.raw"
    restore(image, target, Recorder())
    again = Recorder()
    restore(image, target, again)
    assert again.fields["bytes_written"] == 0
    _flip(target, 80 * BLOCK_BYTES)
    _flip(target, 83 * BLOCK_BYTES)  # of zeros
    mended = Recorder()
    restore(image, target, mended)
    assert mended.phases == ["scan", "zero", "write", "flush", "verify"]
    edges_bytes = 2 * MIB + 2 * BLOCK_BYTES + 4096
    assert 0 < int(str(mended.fields["bytes_written"])) <= 2 * BLOCK_BYTES + 2 * edges_bytes
    compare(image, target, Recorder())


def test_without_a_scan_every_block_is_written(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "target.raw"
    restore(image, target, Recorder())
    again = Recorder()
    restore(image, target, again, TargetOptions(scans=False))
    assert again.phases == ["zero", "write", "flush", "verify"]
    assert int(str(again.fields["bytes_written"])) >= MADE.manifest.summary()[BlockKind.RAW].raw_bytes


def test_an_interrupted_restore_resumes(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "target.raw"

    def interrupt(phase: str) -> None:
        if phase == "flush":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(image, target, Recorder(interrupt))
    marker = parse_marker_untrusted(target.read_bytes()[:512])
    assert marker is not None
    assert marker.image_name == MADE.manifest.name
    on_again = Recorder()
    restore(image, target, on_again)
    assert int(str(on_again.fields["raw_bytes_kept"])) > len(MADE.raw) // 2
    compare(image, target, Recorder())


def test_an_image_that_contradicts_itself_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    made = make_image("drd", raw_hashes={2: block_hash(b"something else")})
    image = made.write(tmp_path / "made.dci")
    with pytest.raises(ImageDamagedError, match=r"block 2 .*pack the image again"):
        restore(image, tmp_path / "target.raw", Recorder())


def test_the_image_is_not_its_own_target(image: Path) -> None:
    before = image.read_bytes()
    with pytest.raises(TargetIsImageError):
        restore(image, image, Recorder())
    assert image.read_bytes() == before


def test_comparison_counts_all_and_shows_the_first(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(bytes(len(MADE.raw)))
    stored = [block for block in range(163) if MADE.manifest.stored_mask[block]]
    recorder = Recorder()
    with pytest.raises(VerificationError, match=f"in {len(stored)} of 162 blocks"):
        compare(image, target, recorder)
    assert recorder.shown is not None
    assert recorder.shown[0] == len(stored)
    assert [one.block for one in recorder.shown[1]] == stored[:DIFFERENCES_SHOWN_MAX]
    assert target.read_bytes() == bytes(len(MADE.raw))


def test_comparison_with_something_smaller(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(MADE.raw[:-1])
    with pytest.raises(TargetTooSmallError):
        compare(image, target, Recorder())


def test_comparison_ignores_content_after_the_image(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(MADE.raw + b"a larger disk")
    recorder = Recorder()
    compare(image, target, recorder)
    assert recorder.fields["target_bytes"] == len(MADE.raw) + 13


def test_opening_an_image_checks_it(tmp_path: Path, image: Path) -> None:
    with pytest.raises(ImageError, match="can't be opened"):
        open_image(tmp_path / "missing.dci")
    with pytest.raises(ImageError):
        open_image(tmp_path)
    (tmp_path / "text").write_text("not an image" * 1000)
    with pytest.raises(ImageFormatError, match="text"):
        open_image(tmp_path / "text")
    whole = image.read_bytes()
    for cut in (100, 4096, 5000, len(whole) - 1):
        image.write_bytes(whole[:cut])
        with pytest.raises(ImageDamagedError, match="truncated"):
            open_image(image)
    image.write_bytes(whole)
    _flip(image, 4096 + 300)
    with pytest.raises(ImageDamagedError):
        open_image(image)


def test_a_dry_run_reports_the_work_and_changes_nothing(tmp_path: Path, image: Path) -> None:
    target = tmp_path / "target.raw"
    recorder = Recorder()
    restore(image, target, recorder, TargetOptions(dry_run=True))
    assert not target.exists()
    assert recorder.fields["raw_bytes_kept"] == 0
    restore(image, target, Recorder())
    _flip(target, 80 * BLOCK_BYTES)
    before = target.read_bytes()
    restore(image, target, recorder, TargetOptions(dry_run=True))
    assert target.read_bytes() == before
    assert recorder.fields["blocks_to_receive"] == 1
    assert recorder.fields["raw_bytes_to_write"] == BLOCK_BYTES
    assert recorder.fields["raw_bytes_kept"] == len(MADE.raw) - 2 * BLOCK_BYTES


@pytest.mark.parametrize("unreadable_count", [1, 16, 17])
def test_blocks_that_are_unreadable_before_writing_are_written(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, unreadable_count: int
) -> None:
    """An old unreadable sector recovers once it is written; a disk full of them is dying."""
    target = tmp_path / "target.raw"
    restore(image, target, Recorder())
    bad = {40 + 4 * index for index in range(unreadable_count)}
    written: set[int] = set()
    read, write = os.preadv, os.pwrite

    def blocks_at(offset: int, length: int) -> set[int]:
        return set(range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)))

    def failing_read(fd: int, buffers: list[memoryview], offset: int) -> int:
        if blocks_at(offset, len(buffers[0])) & (bad - written):
            raise OSError(errno.EIO, "Input/output error")
        return read(fd, buffers, offset)

    def healing_write(fd: int, data: memoryview, offset: int) -> int:
        written.update(blocks_at(offset, len(data)))
        return write(fd, data, offset)

    monkeypatch.setattr("receiver.disk.read_back.os.preadv", failing_read)
    monkeypatch.setattr("receiver.disk.writer.os.pwrite", healing_write)
    if unreadable_count > UNREADABLE_COUNT_MAX:
        with pytest.raises(StorageError, match="Input/output error"):
            restore(image, target, Recorder())
        assert not written
        return
    restore(image, target, Recorder())
    assert bad <= written
    monkeypatch.undo()
    compare(image, target, Recorder())
