"""Tests of unused blocks: only blocks entirely in free space, and none of a doubtful partition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import KIB, MIB
from protocol.disk.partition_table import parse_layout_untrusted
from protocol.packing import source_use
from protocol.packing.filesystems.area import Area
from protocol.packing.filesystems.free_space import FreeSpace
from protocol.packing.source import Source
from protocol.packing.used_blocks import UnusedBlocks, find_unused_blocks, whole_blocks
from protocol.program.loop_device import LoopDeviceError
from tests.support.disks.disk_layouts import gpt_entry, mbr_entry, put_boot_record, put_filesystem, put_gpt

BLOCK_BYTES = 64 * KIB


@pytest.fixture
def disk() -> bytearray:
    return bytearray(16 * MIB)


@pytest.fixture
def all_free(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make every filesystem report all but its first MiB as free; return the examined filesystems and their places."""
    examined: list[str] = []

    def find(filesystem: str, area: Area, _min_bytes: int) -> FreeSpace:
        examined.append(f"{filesystem} {area.tool_path.split('/')[1]} {area.tool_offset_bytes // MIB}")
        return FreeSpace(np.array([[MIB, area.size_bytes]]), area.size_bytes - MIB)

    monkeypatch.setattr("protocol.packing.used_blocks.find_free_space", find)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    return examined


def found(disk: bytearray, folder: Path, *, may_change: bool = False) -> UnusedBlocks:
    path = folder / "disk"
    path.write_bytes(disk)
    with Source(path) as source:
        layout = parse_layout_untrusted(source.read, source.raw_bytes)
        return find_unused_blocks(source, layout, BLOCK_BYTES, may_change=may_change)


def reasons(found: UnusedBlocks) -> list[str]:
    assert not found.ranges.size
    assert all(area.used_bytes is None for area in found.areas)
    return [area.kept_because for area in found.areas]


ranges = st.lists(st.integers(0, 5_000_000), max_size=20, unique=True).map(
    lambda edges: np.array(sorted(edges)[: len(edges) // 2 * 2], np.int64).reshape(-1, 2)
)


@given(ranges, st.integers(0, 3), st.booleans())
def test_only_blocks_wholly_in_free_ranges_are_unused(free: np.ndarray, shuffle: int, to_end: bool) -> None:
    raw_bytes = 5_000_001
    if to_end and free.size:
        free[-1, 1] = raw_bytes
    is_free = np.zeros(raw_bytes, np.bool_)
    for start, stop in free.tolist():
        is_free[start:stop] = True
    shuffled = np.random.default_rng(shuffle).permutation(free)
    blocks = whole_blocks(shuffled, BLOCK_BYTES, raw_bytes)
    unused = {block for first, stop in blocks.tolist() for block in range(first, stop)}
    for block in range(-(-raw_bytes // BLOCK_BYTES)):
        touching = ((free[:, 0] < (block + 1) * BLOCK_BYTES) & (free[:, 1] > block * BLOCK_BYTES)).sum()
        whole = is_free[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES].all()
        assert (block in unused) == (whole and touching == 1)
    assert (np.diff(blocks.ravel()) >= 0).all()


def test_each_partition_is_examined_and_the_gaps_are_kept(
    disk: bytearray, tmp_path: Path, all_free: list[str]
) -> None:
    put_gpt(disk, [gpt_entry(2048, 8191), gpt_entry(10240, 20479)])
    put_filesystem(disk, MIB, "ext4")
    put_filesystem(disk, 5 * MIB, "swap")
    result = found(disk, tmp_path)
    assert all_free == ["ext4 proc 1", "swap proc 5"]
    assert (result.ranges * BLOCK_BYTES // MIB).tolist() == [[2, 4], [6, 10]]
    assert [str(area) for area in result.areas] == [
        "partition 1: ext4, 3.0 MiB, 1.0 MiB used (counted by dumpe2fs)",
        "partition 2: swap, 5.0 MiB, 1.0 MiB used (counted by diskcast)",
    ]


def test_without_root_a_partition_that_needs_a_loop_device_is_kept(
    disk: bytearray, tmp_path: Path, all_free: list[str]
) -> None:
    put_gpt(disk, [gpt_entry(2048, 8191)])
    put_filesystem(disk, MIB, "xfs")
    assert "pack as root" in reasons(found(disk, tmp_path))[0]
    assert not all_free


def test_without_a_partition_table_no_loop_device_is_needed(
    disk: bytearray, tmp_path: Path, all_free: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_filesystem(disk, 0, "xfs")
    assert (found(disk, tmp_path).ranges * BLOCK_BYTES // MIB).tolist() == [[1, 16]]
    monkeypatch.setattr("os.geteuid", lambda: 0)

    def refuse(*_arguments: object, **_options: object) -> None:
        raise LoopDeviceError("no loop devices here")

    monkeypatch.setattr("protocol.packing.used_blocks.loop_device", refuse)
    assert found(disk, tmp_path).ranges.size
    assert all_free == ["xfs proc 0"] * 2
    put_gpt(disk, [gpt_entry(2048, 8191)])
    put_filesystem(disk, MIB, "xfs")
    assert "no loop devices here" in reasons(found(disk, tmp_path))[0]


def test_overlapping_partitions_are_kept(disk: bytearray, tmp_path: Path, all_free: list[str]) -> None:
    put_gpt(disk, [gpt_entry(2048, 8191), gpt_entry(8000, 20479)])
    put_filesystem(disk, MIB, "ext4")
    put_filesystem(disk, 8000 * 512, "ext4")
    assert ["overlaps" in reason for reason in reasons(found(disk, tmp_path))] == [True, True]


@pytest.mark.parametrize("kind", ["0x42", "gpt"])
def test_windows_dynamic_disks_are_kept(
    disk: bytearray, tmp_path: Path, all_free: list[str], kind: str
) -> None:
    if kind == "gpt":
        put_gpt(disk, [gpt_entry(2048, 8191, guid="AF9B60A0-1431-4F62-BC68-3311714A69AD")])
    else:
        put_boot_record(disk, 0, mbr_entry(0x42, 2048, 8000))
    put_filesystem(disk, MIB, "ntfs")
    assert "dynamic disk" in reasons(found(disk, tmp_path))[0]


def test_raid_members_are_kept(disk: bytearray, tmp_path: Path, all_free: list[str]) -> None:
    """The superblock of an old RAID is at the end, so the start looks like an ordinary filesystem."""
    put_gpt(disk, [gpt_entry(2048, 8191)])
    put_filesystem(disk, MIB, "ext4")
    disk[4 * MIB - 65536 : 4 * MIB - 65532] = b"\xfc\x4e\x2b\xa9"
    assert "Linux RAID" in reasons(found(disk, tmp_path))[0]
    disk[-1024:-1000] = b"Intel Raid ISM Cfg Sig. "
    assert "firmware RAID" in reasons(found(disk, tmp_path))[0]


def test_a_disk_with_both_a_table_and_a_filesystem_is_kept(
    disk: bytearray, tmp_path: Path, all_free: list[str]
) -> None:
    put_boot_record(disk, 0, mbr_entry(0x83, 2048, 8000))
    put_filesystem(disk, MIB, "ext4")
    put_filesystem(disk, 0, "btrfs")
    assert "both" in reasons(found(disk, tmp_path))[0]


def test_unknown_and_ambiguous_partitions_are_kept(
    disk: bytearray, tmp_path: Path, all_free: list[str]
) -> None:
    put_gpt(disk, [gpt_entry(2048, 8191), gpt_entry(8192, 16383)])
    put_filesystem(disk, 4 * MIB, "ext4")
    put_filesystem(disk, 4 * MIB, "xfs")
    unknown, ambiguous = reasons(found(disk, tmp_path))
    assert "no supported filesystem" in unknown
    assert "ext4, xfs" in ambiguous


def test_a_source_that_may_change_is_kept(disk: bytearray, tmp_path: Path, all_free: list[str]) -> None:
    put_filesystem(disk, 0, "ext4")
    assert reasons(found(disk, tmp_path, may_change=True)) == ["the source is mounted writable"]


# -- users of a source ----------------------------------------------------------------------------------------


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "mountinfo"
    path.write_text("")
    monkeypatch.setattr(source_use, "_MOUNTS", path)
    return path


def test_a_file_mounted_by_a_program_is_in_use(tmp_path: Path, mounts: Path) -> None:
    source = tmp_path / "a disk"
    source.write_bytes(b"x")
    escaped = str(source).replace(" ", "\\040")
    line = f"46 27 0:42 / /mnt/a\\040b rw,relatime shared:1 - fuse {escaped} rw,user_id=0\n"
    mounts.write_text("garbage\n1 2 3\n" + line)
    use = source_use.find_source_use(source, source.stat())
    assert (use.writable, use.may_change) == (("/mnt/a b",), True)
    mounts.write_text(line.replace("rw,user", "ro,user"))
    assert not source_use.find_source_use(source, source.stat()).may_change


def test_a_read_only_view_of_a_writable_filesystem_is_writable(tmp_path: Path, mounts: Path) -> None:
    """A bind mount may be read-only while the filesystem is written through another."""
    source = tmp_path / "disk"
    source.write_bytes(b"x")
    mounts.write_text(f"46 27 0:42 / /view ro,relatime - fuse {source} rw\n")
    assert source_use.find_source_use(source, source.stat()).writable == ("/view",)


def test_free_ranges_that_a_foreign_format_knows_are_added() -> None:
    """Clonezilla's bitmaps also cover filesystems whose tools aren't installed."""
    known = UnusedBlocks(np.array([[2, 4], [8, 9]], np.int64), ())
    free = np.array([[100, 350], [390, 700], [950, 1050]], np.int64)
    merged = known.with_free_ranges(free, 100, 1050)
    assert merged.ranges.tolist() == [[1, 7], [8, 9], [10, 11]]
    assert not len(UnusedBlocks(free[:0], ()).with_free_ranges(free[:0], 100, 1050).ranges)
