"""Commit last: no write before the commit makes a disk look bootable, in the order of the writes.

Lost if these fail: a machine that was switched off in the middle boots half an image, or one that was called complete
isn't after the next power cut.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import MIB
from protocol.image.incomplete_marker import parse_marker_untrusted
from receiver.disk.read_back import ReadBack
from receiver.restore.disk_progress import TextProgress
from receiver.restore.restore_image import restore
from receiver.target.block_sink import BlockSink
from receiver.target.open_target import open_target
from tests.support.disks.disk_images import BLOCK_BYTES, MadeImage, make_image
from tests.support.disks.recorded_disk import RecordedDisk
from tests.support.disks.write_log import TEAR_BYTES, Entry, Kind

EDGE_COUNT = MIB // BLOCK_BYTES
OLD = random.Random(1).randbytes(510) + b"\x55\xaa" + random.Random(2).randbytes(5 * MIB)


class Silence(TextProgress):
    def result(self, fields: dict[str, object], text: str) -> None:
        self.fields = fields


def recorded_restore(
    made: MadeImage, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> RecordedDisk:
    disk = RecordedDisk(folder / "target", content)
    image_path = made.write(folder / "made.dci")
    with disk.recorded(monkeypatch):
        restore(image_path, disk.path, Silence())
    return disk


def prefixes(disk: RecordedDisk) -> Iterator[bytes]:
    """Return the content after each entry."""
    content = bytearray(disk.durable)
    for entry in disk.log:
        entry.apply(content)
        yield bytes(content)


def test_pages_that_a_killed_agent_left_in_the_cache_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks are right, so nothing is written; but they might be only in the page cache."""
    made = make_image("drzd" * 12)
    disk = RecordedDisk(tmp_path / "target", made.raw)
    with (
        disk.recorded(monkeypatch),
        open_target(disk.path, raw_bytes=len(made.raw)) as target,
        BlockSink(target, made.manifest) as sink,
    ):
        sink.prepare()
        assert sink.commit_last.keep_matching().size
        assert sink.verify(np.arange(made.manifest.block_count)).size == 0
        sink.commit()
    assert {entry.kind for entry in disk.log} == {Kind.FLUSH}


def test_a_target_is_flushed_before_it_is_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without O_DIRECT a dirty page would be read instead of the disk."""
    made = make_image("drzd" * 12)
    disk = RecordedDisk(tmp_path / "target", made.raw)
    logs = []

    def look(_sink: BlockSink, _rng: random.Random) -> bool:
        logs.append([entry.kind for entry in disk.log])
        return True

    monkeypatch.setattr(BlockSink, "worth_scanning", look)
    with disk.recorded(monkeypatch):
        restore(made.write(tmp_path / "made.dci"), disk.path, Silence())
    assert logs == [[Kind.FLUSH]]


def test_zeros_missing_at_the_end_of_a_file_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_image("drdd" * 12 + "zz")
    disk = recorded_restore(made, made.raw[: -2 * BLOCK_BYTES], tmp_path, monkeypatch)
    assert disk.path.read_bytes() == made.raw
    assert disk.log[-1].kind is Kind.FLUSH


@pytest.mark.parametrize("kinds", ["drzd" * 12, "d"])
def test_a_longer_file_keeps_its_end_until_the_marker_is_written(
    kinds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_image(kinds)
    disk = recorded_restore(made, OLD, tmp_path, monkeypatch)
    assert disk.path.read_bytes() == made.raw
    for content in prefixes(disk):
        assert content in (OLD, made.raw) or parse_marker_untrusted(content[:512]) is not None


def test_a_longer_file_that_holds_the_image_is_only_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_image("drzd" * 12)
    disk = recorded_restore(made, made.raw + b"more", tmp_path, monkeypatch)
    assert disk.path.read_bytes() == made.raw
    assert [entry.kind for entry in disk.log if entry.kind is not Kind.FLUSH] == [Kind.TRUNCATE]


def test_a_torn_write_of_the_marker_changes_only_the_first_sector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-written marker would leave the old boot sector in front of a wiped boot loader."""
    made = make_image("drzd" * 12)
    old = OLD[: len(made.raw)]
    disk = recorded_restore(made, old, tmp_path, monkeypatch)
    first = next(entry for entry in disk.log if entry.kind is Kind.WRITE)
    without_first_sector = bytearray(old)
    data = first.data[TEAR_BYTES:]
    Entry(Kind.WRITE, TEAR_BYTES, len(data), data).apply(without_first_sector)
    assert without_first_sector == old


@pytest.mark.parametrize("kinds", ["u" + "drzd" * 12, "u" * 20 + "drzd" * 12, "ur", "uz"])
def test_discarding_unused_blocks_keeps_the_marker(
    kinds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_image(kinds)
    old = OLD[: len(made.raw)]
    disk = recorded_restore(made, old, tmp_path, monkeypatch)
    used_from = kinds.rindex("u") + 1
    for content in prefixes(disk):
        is_there = content[used_from * BLOCK_BYTES :] == made.raw[used_from * BLOCK_BYTES :]
        assert content == old or is_there or parse_marker_untrusted(content[:512]) is not None


def test_an_edge_that_reads_wrong_once_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit flipped while the target was scanned."""
    made = make_image("drdd" * 12)
    read_into, wrong = ReadBack.read_into, iter([3, len(made.raw) // BLOCK_BYTES - 2])

    def read_wrongly(self: ReadBack, buffer: memoryview, offset_bytes: int) -> int:
        count = read_into(self, buffer, offset_bytes)
        if len(buffer) > 4096 and (block := next(wrong, None)) is not None:
            buffer[max(0, block * BLOCK_BYTES - offset_bytes)] ^= 1
        return count

    old = bytearray(made.raw)
    old[24 * BLOCK_BYTES] ^= 1
    target = tmp_path / "target"
    target.write_bytes(old)
    monkeypatch.setattr(BlockSink, "worth_scanning", lambda _sink, _rng: True)
    monkeypatch.setattr(ReadBack, "read_into", read_wrongly)
    restore(made.write(tmp_path / "made.dci"), target, Silence())
    assert target.read_bytes() == made.raw
