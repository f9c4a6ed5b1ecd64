"""Tests of the seed partition: the golden disk keeps its partitions, and partitioning tools accept the result."""

from __future__ import annotations

import struct
import zlib

import pytest

from protocol.constants import MIB
from protocol.disk.gpt import has_backup_at_end_untrusted
from protocol.disk.partition_table import TableKind, parse_layout_untrusted
from protocol.disk.seed_partition import SEED_PARTITION_BYTES, SEED_PARTITION_NAME, plan_seed_partition
from protocol.errors import ConfigurationError
from tests.support.disks.disk_layouts import gpt_entry, mbr_entry, put_boot_record, put_gpt, reader

BLOCK_BYTES = 256 * 1024


def seeded(disk: bytearray, *, sector_bytes: int = 512, block_bytes: int = BLOCK_BYTES) -> bytearray:
    layout = parse_layout_untrusted(reader(disk), len(disk), sector_bytes=sector_bytes)
    plan = plan_seed_partition(reader(disk), len(disk), layout, block_bytes)
    result = disk.ljust(plan.disk_bytes, b"\0")
    for offset, data in plan.writes:
        result[offset : offset + len(data)] = data
    return result


def gpt_disk(
    size_mib: int, *places: tuple[int, int], sector_bytes: int = 512, entry_count: int = 128
) -> bytearray:
    disk = bytearray(size_mib * MIB)
    unit = MIB // sector_bytes
    entries = [gpt_entry(start * unit, stop * unit - 1, f"part {start}") for start, stop in places]
    put_gpt(
        disk,
        entries,
        sector_bytes=sector_bytes,
        entry_count=entry_count,
        last_usable_sector=len(disk) // sector_bytes - 34,
    )
    return disk


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize(
    ("size_mib", "places", "start_mib", "grown_mib"),
    [
        pytest.param(64, ((1, 20), (20, 40)), 40, 64, id="in the free end"),
        pytest.param(64, ((1, 20), (30, 63)), 20, 64, id="in a gap between partitions"),
        pytest.param(64, ((8, 20), (20, 63)), 1, 64, id="before the first partition"),
        pytest.param(64, ((1, 20), (20, 63)), 64, 69, id="behind a full disk, which grows"),
    ],
)
def test_the_partition_lies_in_free_space_and_others_stay(
    sector_bytes: int, size_mib: int, places: tuple[tuple[int, int], ...], start_mib: int, grown_mib: int
) -> None:
    disk = gpt_disk(size_mib, *places, sector_bytes=sector_bytes)
    before = parse_layout_untrusted(reader(disk), len(disk), sector_bytes=sector_bytes)
    result = seeded(bytearray(disk), sector_bytes=sector_bytes)
    after = parse_layout_untrusted(reader(result), len(result), sector_bytes=sector_bytes)
    assert (after.table, len(result)) == (TableKind.GPT, grown_mib * MIB)
    assert after.partitions[:-1] == before.partitions
    seed = after.partitions[-1]
    assert (seed.number, seed.name) == (3, SEED_PARTITION_NAME)
    assert (seed.start_bytes, seed.size_bytes) == (start_mib * MIB, SEED_PARTITION_BYTES)
    assert has_backup_at_end_untrusted(reader(result), len(result), sector_bytes)
    for start, stop in places:
        assert result[start * MIB : stop * MIB] == disk[start * MIB : stop * MIB]


def test_no_block_holds_the_seed_and_another_partition() -> None:
    result = seeded(gpt_disk(64, (1, 23), (23, 40)), block_bytes=4 * MIB)
    seed = parse_layout_untrusted(reader(result), len(result)).partitions[-1]
    assert seed.start_bytes % (4 * MIB) == 0


def test_raw_data_between_partitions_survives() -> None:
    """A board's boot loader lies before the first partition, outside of all partitions."""
    disk = gpt_disk(64, (8, 20), (20, 40))
    disk[2 * MIB : 2 * MIB + 4] = b"BOOT"
    result = seeded(disk)
    assert result[2 * MIB : 2 * MIB + 4] == b"BOOT"
    assert parse_layout_untrusted(reader(result), len(result)).partitions[-1].start_bytes == 40 * MIB


def test_a_second_backup_does_not_stay_behind() -> None:
    disk = gpt_disk(64, (1, 63))
    result = seeded(bytearray(disk))
    assert not any(result[63 * MIB : 64 * MIB])
    assert result.count(b"EFI PART") == 2


def test_a_free_primary_entry_of_an_mbr_is_used() -> None:
    disk = bytearray(64 * MIB)
    put_boot_record(disk, 0, mbr_entry(0x83, 2048, 2048 * 20, 0x80), mbr_entry(0x83, 2048 * 21, 2048 * 43))
    result = seeded(bytearray(disk))
    parts = parse_layout_untrusted(reader(result), len(result)).partitions
    assert [(part.number, part.start_bytes // MIB, part.type) for part in parts] == [
        (1, 1, "0x83"),
        (2, 21, "0x83"),
        (3, 64, "0x83"),
    ]
    assert len(result) == 68 * MIB
    assert result[446:478] == disk[446:478]


def full_mbr() -> bytearray:
    disk = bytearray(64 * MIB)
    put_boot_record(disk, 0, *(mbr_entry(0x83, 2048 * start, 2048) for start in (1, 2, 3, 4)))
    return disk


def damaged_gpt() -> bytearray:
    disk = gpt_disk(64, (1, 20))
    disk[512 + 20] ^= 1
    return disk


def full_gpt() -> bytearray:
    return gpt_disk(64, *((start, start + 1) for start in range(1, 5)), entry_count=4)


@pytest.mark.parametrize(
    ("disk", "message"),
    [
        (bytearray(8 * MIB), "no partition table"),
        (full_mbr(), "already has 4 primary partitions"),
        (damaged_gpt(), "primary GPT is damaged"),
        (full_gpt(), "already has 4 partitions"),
        (seeded(gpt_disk(64, (1, 20))), "already has a seed partition"),
    ],
    ids=["no table", "full MBR", "damaged GPT", "full GPT", "second seed"],
)
def test_a_disk_without_room_is_refused(disk: bytearray, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        seeded(disk)


def test_the_partition_guid_depends_on_the_disk_alone() -> None:
    first, again, other = gpt_disk(64, (1, 20)), gpt_disk(64, (1, 20)), gpt_disk(64, (1, 20))
    for sector in (1, len(other) // 512 - 1):  # another disk GUID, with its checksum
        head = other[sector * 512 : sector * 512 + 92]
        head[56] ^= 1
        struct.pack_into("<I", head, 16, 0)
        struct.pack_into("<I", head, 16, zlib.crc32(head))
        other[sector * 512 : sector * 512 + 92] = head

    def guid(disk: bytearray) -> bytes:
        return bytes(seeded(disk)[1024 + 128 + 16 : 1024 + 128 + 32])

    assert guid(first) == guid(again)
    assert guid(first) != guid(other)
