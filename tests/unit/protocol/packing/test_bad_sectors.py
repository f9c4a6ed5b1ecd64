"""Recovery around bad sectors, on a source whose reads fail where a test says."""

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import ImageDamagedError, SourceError
from protocol.image.bad_ranges import RANGES_MAX, BadRange, BadRanges, merge_sectors
from protocol.packing import bad_sectors, source
from protocol.packing.bad_sectors import TRIES
from protocol.packing.source import Source
from protocol.program import positional_reads
from protocol.program.positional_reads import PositionalReadError

SECTOR = 512
CONTENT = os.urandom(300 * SECTOR + 100)


@pytest.fixture
def opened(tmp_path: Path) -> Source:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return Source(path)


def fail_at(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool]) -> None:
    """Let reads that touch a sector for which ``is_bad`` returns true fail."""

    def read_at(fd: int, into: memoryview, offset: int) -> int:
        for sector in range(offset // SECTOR, -(-(offset + len(into)) // SECTOR)):
            if is_bad(sector):
                raise PositionalReadError(OSError(errno.EIO, os.strerror(errno.EIO)), sector * SECTOR)
        return positional_reads.read_at(fd, into, offset)

    monkeypatch.setattr(source, "read_at", read_at)
    monkeypatch.setattr(bad_sectors, "read_at", read_at)


def test_bad_sectors_are_named_exactly_and_stop_a_plain_read(
    opened: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, lambda sector: sector in (7, 8, 200))
    with opened, pytest.raises(SourceError, match="1024 bytes at offset 3584, 512 bytes at offset 102400"):
        opened.read(0, len(CONTENT))


def test_zeroed_sectors_are_listed_and_all_others_are_read(
    opened: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {0, 7, 8, 200, 300}
    fail_at(monkeypatch, lambda sector: sector in bad)
    expected = bytearray(CONTENT)
    for sector in bad:
        expected[sector * SECTOR : (sector + 1) * SECTOR] = bytes(len(expected[sector * SECTOR :][:SECTOR]))
    with opened:
        opened.zero_bad_sectors()
        for offset, length in ((0, len(CONTENT)), (100, 5000), (7 * SECTOR + 3, 1), (299 * SECTOR + 1, 9999)):
            assert opened.read(offset, length) == expected[offset : offset + length]
        assert opened.recovery.bad_ranges == [
            BadRange(0, SECTOR),
            BadRange(7 * SECTOR, 2 * SECTOR),
            BadRange(200 * SECTOR, SECTOR),
            BadRange(300 * SECTOR, 100),  # the file ends within the sector
        ]


def test_sector_that_reads_on_a_further_try_is_no_bad_one(
    opened: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[int] = Counter()

    def is_bad(sector: int) -> bool:
        reads[sector] += sector == 9
        return sector == 9 and reads[9] <= TRIES + 1  # the whole range, its piece, and all tries but the last

    fail_at(monkeypatch, is_bad)
    with opened:
        assert opened.read(0, len(CONTENT)) == CONTENT
        assert opened.recovery.retried_count == 1
        assert opened.recovery.bad_ranges == []


def test_dying_disk_is_given_up(opened: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_sectors, "BAD_SECTORS_MAX", 100)
    fail_at(monkeypatch, lambda _sector: True)
    with opened:
        opened.zero_bad_sectors()
        with pytest.raises(SourceError, match="ddrescue"):
            opened.read(0, len(CONTENT))


def test_metadata_lists_a_bounded_number_and_counts_all() -> None:
    ranges = [BadRange(index * 4096, 512) for index in range(RANGES_MAX + 10)]
    field = BadRanges.decode_untrusted(BadRanges.of(ranges).encode())
    assert field.range_count == RANGES_MAX + 10
    assert field.total_bytes == 512 * (RANGES_MAX + 10)
    assert list(field.ranges) == ranges[:RANGES_MAX]
    assert len(BadRanges.of(()).encode()) == len(BadRanges.of(ranges).encode())


@pytest.mark.parametrize(
    "ranges",
    [
        (BadRange(4096, 512), BadRange(0, 512)),
        (BadRange(0, 0),),
        (BadRange(0, 512), BadRange(512, 512)),
    ],
    ids=["order", "empty", "touching"],
)
def test_metadata_with_another_order_is_refused(ranges: tuple[BadRange, ...]) -> None:
    with pytest.raises(ImageDamagedError, match="bad_ranges"):
        BadRanges.decode_untrusted(BadRanges.of(ranges).encode())


def test_sectors_merge_to_the_end_of_the_disk() -> None:
    assert merge_sectors([5, 2, 1, 4], 512, 2900) == [BadRange(512, 1024), BadRange(2048, 852)]
