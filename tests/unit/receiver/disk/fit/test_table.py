"""The partition table: growth of the last partition, and commands for sfdisk."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.constants import MIB
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from receiver.disk.fit.table import (
    growth_obstacle,
    plan_growth,
    resize_argv,
    resize_text,
)

GIB = 1024 * MIB
LINUX = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
DISK = Path("/proc/12/fd/7")


def gpt(*partitions: Partition, sector_bytes: int = 512) -> DiskLayout:
    return DiskLayout(TableKind.GPT, sector_bytes, partitions)


def mbr(*partitions: Partition) -> DiskLayout:
    return DiskLayout(TableKind.MBR, 512, partitions)


ROOT = Partition(2, 100 * MIB, 900 * MIB, LINUX, filesystem="ext4")
SYSTEM = Partition(1, MIB, 99 * MIB, ESP, filesystem="vfat")


# -- growth of the last partition -------------------------------------------------------------------------------


def test_a_partition_grows_to_the_last_whole_mebibyte_before_the_backup_table() -> None:
    growth = plan_growth(gpt(SYSTEM, ROOT), 8 * GIB)
    assert (growth.partition, growth.stop_bytes) == (ROOT, 8 * GIB - MIB)
    assert growth.grows_partition
    assert growth.name == "partition 2 (ext4)"


def test_a_partition_grows_no_further_than_the_table_allows() -> None:
    growth = plan_growth(gpt(SYSTEM, ROOT), 8 * GIB, usable_stop_bytes=6 * GIB + 77)
    assert growth.stop_bytes == 6 * GIB


def test_a_partition_that_already_ends_behind_the_last_whole_mebibyte_is_not_shortened() -> None:
    stop_bytes = GIB - 34 * 512
    last = Partition(2, 100 * MIB, stop_bytes - 100 * MIB, LINUX, filesystem="ext4")
    growth = plan_growth(gpt(last), GIB)
    assert not growth.grows_partition
    assert growth.stop_bytes == stop_bytes


def test_the_last_partition_is_the_one_that_ends_last() -> None:
    late = Partition(1, 2 * GIB, GIB, LINUX, filesystem="xfs")
    assert plan_growth(gpt(late, ROOT), 8 * GIB).partition == late


def test_an_mbr_partition_ends_where_its_numbers_do() -> None:
    growth = plan_growth(mbr(Partition(1, MIB, GIB, "0x83", filesystem="ext4")), 4096 * GIB)
    assert growth.stop_bytes == 2048 * GIB


def test_a_logical_partition_takes_the_extended_one_along() -> None:
    extended = Partition(2, GIB, 3 * GIB, "0x05")
    logical = Partition(5, GIB + MIB, 3 * GIB - MIB, "0x83", filesystem="ext4")
    layout = mbr(Partition(1, MIB, GIB - MIB, "0x83", filesystem="ext4"), extended, logical)
    assert growth_obstacle(layout) == ""
    growth = plan_growth(layout, 8 * GIB)
    assert (growth.partition, growth.container, growth.stop_bytes) == (logical, extended, 8 * GIB)


def test_a_filesystem_without_a_table_takes_the_whole_target() -> None:
    layout = DiskLayout(TableKind.NONE, 512, (), filesystem="xfs")
    growth = plan_growth(layout, GIB + 512)
    assert (growth.partition, growth.start_bytes, growth.size_bytes) == (None, 0, GIB + 512)
    assert not growth.grows_partition


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (gpt(), "no partition"),
        (DiskLayout(TableKind.NONE, 512, ()), "no partition table, and the filesystem is unknown"),
        (DiskLayout(TableKind.NONE, 512, (), filesystem="exfat"), "the filesystem is exfat"),
        (
            gpt(ROOT, Partition(3, 2 * GIB, 4 * MIB, LINUX, "diskcast-seed", "vfat")),
            "leave 5 MiB free before",
        ),
        (gpt(ROOT, Partition(3, 2 * GIB, GIB, "E6D6D379-F507-44C2-A23C-238F2A3DF928")), "LVM"),
        (gpt(ROOT, Partition(3, 2 * GIB, GIB, "CA7D7CCB-63ED-4C53-861C-1742536059CC")), "LUKS"),
        (
            gpt(ROOT, Partition(3, 2 * GIB, GIB, "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC", filesystem="ntfs")),
            "recovery",
        ),
        (mbr(Partition(1, MIB, GIB, "0x27", filesystem="ntfs")), "recovery"),
        (mbr(Partition(1, MIB, GIB, "0x82", filesystem="swap")), "swap"),
        (
            mbr(Partition(1, MIB, GIB, "0x83", filesystem="ext4"), Partition(2, 2 * GIB, GIB, "0x05")),
            "extended",
        ),
    ],
)
def test_every_obstacle_to_growth_has_a_reason(layout: DiskLayout, reason: str) -> None:
    assert reason in growth_obstacle(layout)


# -- commands for the tools -------------------------------------------------------------------------------------


def test_sfdisk_does_not_involve_the_kernel_and_wipes_nothing() -> None:
    never = ["--wipe", "never", "--wipe-partitions", "never"]
    quiet = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", *never]
    assert resize_argv(DISK, 3) == [*quiet, "-N", "3", "/proc/12/fd/7"]


def test_a_partitions_place_is_given_in_the_disks_sectors() -> None:
    assert resize_text(MIB, 3 * MIB, 512) == "start=2048, size=4096\n"
    assert resize_text(MIB, 3 * MIB, 4096) == "start=256, size=512\n"
