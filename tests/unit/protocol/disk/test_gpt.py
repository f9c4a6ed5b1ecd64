"""A GPT's headers, and the move of its backup, with sfdisk as the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.disk.gpt import (
    MovedBackup,
    has_backup_at_end_untrusted,
    move_backup_untrusted,
    usable_stop_bytes_untrusted,
)
from protocol.disk.partition_table import parse_layout_untrusted
from tests.support.disks.disk_layouts import gpt_entry, mbr_entry, put_gpt, reader
from tests.support.network.lab import run
from tests.support.programs.processes import require_program

SECTORS = 400
LARGER = 1000

Change = Callable[[bytearray], None]


def disk_of(
    *entries: bytes, sectors: int = LARGER, sector_bytes: int = 512, hybrid: bytes = b""
) -> bytearray:
    """Return a disk whose GPT was made for its first 400 sectors."""
    disk = bytearray(SECTORS * sector_bytes)
    put_gpt(disk, entries or [gpt_entry(40, 99)], sector_bytes=sector_bytes, hybrid=hybrid)
    return disk.ljust(sectors * sector_bytes, b"\0")


def apply(disk: bytearray, moved: MovedBackup | None) -> None:
    assert moved is not None
    for offset, data in (*moved.backup, *moved.primary):
        disk[offset : offset + len(data)] = data


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_the_backup_moves_to_the_last_sector_and_no_partition_changes(sector_bytes: int) -> None:
    disk = disk_of(gpt_entry(40, 99), gpt_entry(100, 300), sector_bytes=sector_bytes)
    before = parse_layout_untrusted(reader(disk), len(disk), sector_bytes=sector_bytes)
    assert not has_backup_at_end_untrusted(reader(disk), len(disk), sector_bytes)
    apply(disk, move_backup_untrusted(reader(disk), len(disk), sector_bytes))
    assert has_backup_at_end_untrusted(reader(disk), len(disk), sector_bytes)
    assert parse_layout_untrusted(reader(disk), len(disk), sector_bytes=sector_bytes) == before
    entry_sectors = 128 * 128 // sector_bytes
    assert (
        usable_stop_bytes_untrusted(reader(disk), sector_bytes) == (LARGER - 1 - entry_sectors) * sector_bytes
    )


@pytest.mark.parametrize("cut", range(5))
def test_one_copy_is_valid_after_a_power_cut_between_any_two_writes(cut: int) -> None:
    disk = disk_of()
    layout = parse_layout_untrusted(reader(disk), len(disk))
    moved = move_backup_untrusted(reader(disk), len(disk), 512)
    assert moved is not None
    writes = (*moved.backup, *moved.primary)
    for offset, data in writes[:cut]:
        disk[offset : offset + len(data)] = data
    assert len(writes) == 4
    assert parse_layout_untrusted(reader(disk), len(disk)) == layout


def test_sfdisk_writes_the_same_bytes(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours, theirs):
        with path.open("wb") as file:
            file.truncate(8 * MIB)
    label = "label: gpt\nlabel-id: 6B3B4D5A-0F63-4E8F-9C3D-0D5B1A2C3D4E\nfirst-lba: 2048\n"
    part = "size=2MiB, uuid=0AFC63DA-8483-4772-8E79-3D69D8477DE4\n"
    for path in (ours, theirs):
        run(require_program("sfdisk"), "--quiet", path, text=label + part + part.replace("0AFC", "1AFC"))
        with path.open("r+b") as file:
            file.truncate(24 * MIB)
    run(require_program("sfdisk"), "--quiet", "--relocate", "gpt-bak-std", theirs)
    disk = bytearray(ours.read_bytes())
    apply(disk, move_backup_untrusted(reader(disk), len(disk), 512))
    assert disk == theirs.read_bytes()
    ours.write_bytes(disk)
    assert "No errors detected" in run(require_program("sfdisk"), "--verify", ours)


def test_a_hybrid_record_stays_as_it_is() -> None:
    disk = disk_of(hybrid=mbr_entry(0x83, 40, 20))
    record = disk[:512]
    apply(disk, move_backup_untrusted(reader(disk), len(disk), 512))
    assert disk[:512] == record


def _no_signature(disk: bytearray) -> None:
    disk[512:520] = b"EFI PRAT"


def _flipped_entry(disk: bytearray) -> None:
    disk[1024 + 40] ^= 1


@pytest.mark.parametrize("change", [_no_signature, _flipped_entry])
def test_an_invalid_primary_table_is_left_alone(change: Change) -> None:
    disk = disk_of()
    change(disk)
    assert move_backup_untrusted(reader(disk), len(disk), 512) is None


def test_a_partition_in_the_way_is_kept() -> None:
    disk = disk_of(gpt_entry(40, LARGER - 20))
    assert move_backup_untrusted(reader(disk), len(disk), 512) is None


@pytest.mark.parametrize(
    "change",
    [_no_signature, _flipped_entry, lambda disk: disk.__setitem__(slice(-512, None), bytes(512))],
)
def test_a_backup_counts_only_with_both_copies(change: Change) -> None:
    disk = bytearray(disk_of(sectors=SECTORS))
    assert has_backup_at_end_untrusted(reader(disk), len(disk), 512)
    change(disk)
    assert not has_backup_at_end_untrusted(reader(disk), len(disk), 512)


def test_garbage_is_no_gpt() -> None:
    assert usable_stop_bytes_untrusted(reader(bytes(4096)), 512) is None
    assert usable_stop_bytes_untrusted(lambda _offset, _length: b"", 512) is None
    assert move_backup_untrusted(reader(bytes(4096)), 4096, 512) is None
