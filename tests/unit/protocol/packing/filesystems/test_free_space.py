"""Tests of free ranges: a tool is trusted only if nothing contradicts it, for a wrong range would lose data."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import KIB, MIB
from protocol.packing.filesystems.area import Area
from protocol.packing.filesystems.free_space import METHODS, find_free_space
from protocol.packing.filesystems.superblocks import UsageUnknownError
from protocol.program import system_tools
from protocol.program.confinement import KERNEL_TOOL
from tests.support.disks.disk_layouts import put_filesystem, reader

Fake = Callable[[str, str], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return ``fake(tool, body)``, which replaces a tool by a shell script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(tool: str, body: str) -> None:
        path = tmp_path / tool
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    return put


def printing(text: str) -> str:
    return f"cat <<'END'\n{text}\nEND"


def free_of(filesystem: str, disk: bytearray, min_bytes: int = 64 * KIB) -> list[list[int]]:
    area = Area(reader(disk), len(disk), "/dev/null", KERNEL_TOOL)
    ranges: list[list[int]] = find_free_space(filesystem, area, min_bytes).ranges.tolist()
    return ranges


def refusal(filesystem: str, disk: bytearray) -> str:
    with pytest.raises(UsageUnknownError) as caught:
        free_of(filesystem, disk)
    return str(caught.value)


# -- ext ------------------------------------------------------------------------------------------------------


def ext_disk(blocks: int = 4096, free: int = 4096, *, state: int = 1, incompatible: int = 0) -> bytearray:
    """Make an ext4 with blocks of 4 KiB."""
    disk = bytearray(16 * MIB)
    put_filesystem(disk, 0, "ext4")
    struct.pack_into("<IIIIIII", disk, 1024 + 4, blocks, 0, free, 0, 0, 2, 2)
    struct.pack_into("<H", disk, 1024 + 0x3A, state)
    struct.pack_into("<I", disk, 1024 + 0x60, incompatible)
    return disk


def test_ext_ranges_are_joined_over_groups_and_short_ones_left_out(fake: Fake) -> None:
    fake(
        "dumpe2fs",
        printing(
            "Free blocks:              3000\n"
            "Group 0: (Blocks 0-1023) csum 0x1\n  Free blocks: 10-12, 100, 500-1023\n  Free inodes: 7-90\n"
            "Group 1: (Blocks 1024-2047)\n  Free blocks: 1024-1500, 1600-2047\n  Free blocks: "
        ),
    )
    assert free_of("ext4", ext_disk()) == [[500 * 4096, 1501 * 4096], [1600 * 4096, 2048 * 4096]]


@pytest.mark.parametrize(
    "line",
    [
        "  Free blocks: 100-50",
        "  Free blocks: 100-200, 150-300",
        "  Free blocks: 100-200\n  Free blocks: 50-60",
        "  Free blocks: 4000-4096",
        "  Free blocks: 99999999999999999999999",
        "  Free blocks: " + "9" * 10_000,
    ],
)
def test_impossible_ranges_are_refused(fake: Fake, line: str) -> None:
    fake("dumpe2fs", printing(line))
    assert "out of order or outside it" in refusal("ext4", ext_disk())


def test_more_free_space_than_the_superblock_allows_is_refused(fake: Fake) -> None:
    fake("dumpe2fs", printing("  Free blocks: 100-200"))
    assert "its superblock allows 409600 at most" in refusal("ext4", ext_disk(free=100))
    assert free_of("ext4", ext_disk(free=101)) == [[100 * 4096, 201 * 4096]]


@pytest.mark.parametrize(
    "disk",
    [
        ext_disk(state=0),
        ext_disk(state=3),
        ext_disk(state=2),
        ext_disk(incompatible=0x4),
    ],
)
def test_an_unclean_ext_is_refused(fake: Fake, disk: bytearray) -> None:
    fake("dumpe2fs", printing("  Free blocks: 100-200"))
    assert "unmounted cleanly" in refusal("ext4", disk)


def test_a_filesystem_larger_than_its_partition_is_refused(fake: Fake) -> None:
    """It spans several disks, and its free ranges may be on another one."""
    fake("dumpe2fs", printing("  Free blocks: 100-200"))
    assert "part of a RAID" in refusal("ext4", ext_disk(blocks=4097))


@pytest.mark.parametrize(
    ("body", "limit_s", "reason"),
    [
        ("echo '  Free blocks: 100-200'; echo 'checksum error' >&2; exit 1", 120.0, "checksum error"),
        ("echo '  Free blocks: 100-200'; kill -SEGV $$", 120.0, "signal 11"),
        ("echo '  Free blocks: 100-200'; exec sleep 1000", 0.5, "didn't exit"),
    ],
)
def test_a_tool_that_fails_or_hangs_loses_nothing(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, body: str, limit_s: float, reason: str
) -> None:
    monkeypatch.setattr(system_tools, "TIME_LIMIT_S", limit_s)
    fake("dumpe2fs", body)
    assert reason in refusal("ext4", ext_disk())


def test_a_tool_without_output_keeps_everything(fake: Fake) -> None:
    fake("dumpe2fs", "true")
    assert free_of("ext4", ext_disk()) == []
    fake("dumpe2fs", "head -c 3000000 /dev/urandom | tr 'F' 'x'")
    assert free_of("ext4", ext_disk()) == []


@pytest.mark.parametrize("filesystem", [name for name, method in METHODS.items() if method.tools])
def test_a_missing_tool_is_named_with_its_package(filesystem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(system_tools, "_SYSTEM_PATHS", ())
    monkeypatch.setattr("protocol.packing.filesystems.free_space.read_superblock_untrusted", lambda *_: None)
    reason = refusal(filesystem, bytearray(MIB))
    assert METHODS[filesystem].name in reason
    assert METHODS[filesystem].packages in reason


# -- XFS ------------------------------------------------------------------------------------------------------


def xfs_disk(*, log_start: int = 1, in_progress: int = 0, free: int = 4096) -> bytearray:
    """Make an XFS with four groups of 1024 blocks of 4 KiB."""
    disk = bytearray(16 * MIB)
    struct.pack_into(">4sIQ", disk, 0, b"XFSB", 4096, 4096)
    struct.pack_into(">Q", disk, 48, log_start)
    struct.pack_into(">II", disk, 84, 1024, 4)
    struct.pack_into(">H", disk, 100, 5)
    disk[126] = in_progress
    struct.pack_into(">Q", disk, 144, free)
    return disk


CLEAN_LOG = printing("    log tail: 2 head: 2 state: <CLEAN>\n")


def test_xfs_ranges_count_within_groups_and_spare_lists_are_unsorted(fake: Fake) -> None:
    fake("xfs_logprint", CLEAN_LOG)
    fake(
        "xfs_db",
        printing(
            "    agno    agbno      len\n"
            "       0      900        1\n       0       10      100\n       0      901      123\n"
            "       1        0       24\n       3     1000       24\n   from      to extents  blocks    pct\n"
            "      1       1       1       1   0.03"
        ),
    )
    assert free_of("xfs", xfs_disk()) == [
        [10 * 4096, 110 * 4096],
        [900 * 4096, 1048 * 4096],
        [4072 * 4096, 4096 * 4096],
    ]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("0 1000 25", "outside its allocation groups"),
        ("4 0 100", "out of order or outside it"),
        ("1 0 50\n 0 0 50", "out of order or outside it"),
        ("2 5 20\n 2 10 20", "out of order or outside it"),
    ],
)
def test_impossible_xfs_ranges_are_refused(fake: Fake, lines: str, reason: str) -> None:
    fake("xfs_logprint", CLEAN_LOG)
    fake("xfs_db", printing(lines))
    assert reason in refusal("xfs", xfs_disk())


@pytest.mark.parametrize("line", ["    log tail: 2 head: 9 state: <DIRTY>", "", "rubbish"])
def test_an_xfs_whose_log_isn_t_known_to_be_clean_is_refused(fake: Fake, line: str) -> None:
    fake("xfs_logprint", printing(line))
    fake("xfs_db", printing(" 0 10 100"))
    assert "log" in refusal("xfs", xfs_disk())


def test_an_xfs_with_an_external_log_or_half_made_is_refused() -> None:
    assert "another device" in refusal("xfs", xfs_disk(log_start=0))
    assert "repair" in refusal("xfs", xfs_disk(in_progress=1))


# -- btrfs ----------------------------------------------------------------------------------------------------

MIB16 = 16 * MIB
CHUNKS = f"""chunk tree
	item 0 key (DEV_ITEMS DEV_ITEM 1) itemoff 16185 itemsize 98
	item 1 key (FIRST_CHUNK_TREE CHUNK_ITEM {100 * MIB}) itemoff 16105 itemsize 80
		length {4 * MIB} owner 2 stripe_len 65536 type DATA|single
		num_stripes 1 sub_stripes 1
			stripe 0 devid 1 offset {2 * MIB}
	item 2 key (FIRST_CHUNK_TREE CHUNK_ITEM {104 * MIB}) itemoff 15993 itemsize 112
		length {2 * MIB} owner 2 stripe_len 65536 type METADATA|DUP
		num_stripes 2 sub_stripes 1
			stripe 0 devid 1 offset {8 * MIB}
			stripe 1 devid 1 offset {12 * MIB}"""
EXTENTS = f"""	item 0 key ({100 * MIB} EXTENT_ITEM {MIB}) itemoff 16206 itemsize 53
	item 1 key ({100 * MIB} BLOCK_GROUP_ITEM {4 * MIB}) itemoff 16206 itemsize 24
	item 2 key ({102 * MIB} EXTENT_ITEM 4096) itemoff 16206 itemsize 53
	item 3 key ({104 * MIB} METADATA_ITEM 0) itemoff 16206 itemsize 33"""
EXTENT_BYTES = MIB + 4096 + 16384


def btrfs_disk(
    used: int = EXTENT_BYTES, *, devices: int = 1, log_root: int = 0, features: int = 0x361
) -> bytearray:
    disk = bytearray(MIB16)
    put_filesystem(disk, 0, "btrfs")
    at = 64 * KIB
    struct.pack_into("<Q", disk, at + 56, 1)
    struct.pack_into("<Q", disk, at + 96, log_root)
    struct.pack_into("<QQQQ", disk, at + 112, MIB16, used, 6, devices)
    struct.pack_into("<II", disk, at + 144, 4096, 16384)
    struct.pack_into("<Q", disk, at + 188, features)
    return disk


def fake_btrfs(fake: Fake, chunks: str = CHUNKS, extents: str = EXTENTS) -> None:
    fake("btrfs", f'if [ "$5" = chunk ]; then\n{printing(chunks)}\nelse\n{printing(extents)}\nfi')


def test_btrfs_keeps_both_copies_of_metadata_and_the_boot_area(fake: Fake) -> None:
    fake_btrfs(fake)
    assert free_of("btrfs", btrfs_disk()) == [
        [MIB, 2 * MIB],
        [3 * MIB, 4 * MIB],
        [4 * MIB + 4096, 8 * MIB],
        [8 * MIB + 16384, 12 * MIB],
        [12 * MIB + 16384, MIB16],
    ]


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        (btrfs_disk(EXTENT_BYTES + 4096), "count used bytes differently"),
        (btrfs_disk(EXTENT_BYTES - 4096), "count used bytes differently"),
        (btrfs_disk(devices=2), "2 devices"),
        (btrfs_disk(log_root=4096), "unmounted cleanly"),
        (btrfs_disk(features=0x1361), "features"),
        (btrfs_disk(features=1 << 40), "features"),
    ],
)
def test_an_inconsistent_or_unsupported_btrfs_is_refused(fake: Fake, disk: bytearray, reason: str) -> None:
    fake_btrfs(fake)
    assert reason in refusal("btrfs", disk)


@pytest.mark.parametrize(
    ("chunks", "extents"),
    [
        ("", EXTENTS),
        (CHUNKS.replace("DUP", "RAID0"), EXTENTS),
        (CHUNKS.replace(f"length {2 * MIB}", "length 4096"), EXTENTS),
        (CHUNKS, EXTENTS.replace(f"({102 * MIB} E", f"({99 * MIB} E")),
        (CHUNKS, EXTENTS.replace(f"({102 * MIB} E", f"({120 * MIB} E")),
        (CHUNKS, EXTENTS.replace(f"({102 * MIB} E", f"({100 * MIB + 4096} E")),
        (CHUNKS, EXTENTS.replace(f"({102 * MIB} E", f"({104 * MIB - 4} E")),
        (CHUNKS, EXTENTS.rsplit("\n", 1)[0]),
        (CHUNKS, ""),
    ],
)
def test_impossible_btrfs_trees_are_refused(fake: Fake, chunks: str, extents: str) -> None:
    fake_btrfs(fake, chunks, extents)
    assert refusal("btrfs", btrfs_disk())


# -- partclone's maps -----------------------------------------------------------------------------------------


def exfat_disk(*, flags: int = 0, fats: int = 1) -> bytearray:
    disk = bytearray(16 * MIB)
    put_filesystem(disk, 0, "exfat")
    struct.pack_into("<Q", disk, 72, 32768)
    struct.pack_into("<II", disk, 88, 4096, 3584)
    struct.pack_into("<H", disk, 106, flags)
    disk[108:111] = bytes([9, 3, fats])
    return disk


MAP = """# Domain logfile created by unset_name v0.3.23
# Source: x
# Offset: 0x00000000
# current_pos  current_status
0x01000000     ?
#      pos        size  status
0x00000000  0x00300000  +
0x00300000  0x00400000  ?
0x00700000  0x00000200  +
0x00700200  0x008FFE00  ?"""


def test_a_map_s_free_ranges(fake: Fake) -> None:
    fake("partclone.exfat", printing(MAP))
    assert free_of("exfat", exfat_disk()) == [[3 * MIB, 7 * MIB], [7 * MIB + 512, 16 * MIB]]


def test_the_area_before_the_clusters_is_never_free(fake: Fake) -> None:
    """Boot regions and allocation tables are packed even if a map lists them as free."""
    fake(
        "partclone.exfat",
        printing(MAP.replace("0x00300000  +", "0x00300000  ?").replace("0x00400000  ?", "0x00400000  +")),
    )
    assert free_of("exfat", exfat_disk())[0] == [2 * MIB, 3 * MIB]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a heading",
        "Segmentation fault, core dumped, sorry",
        MAP.replace("0x00700000", "0x00700200"),
        MAP.replace("0x00400000", "0x00300000"),
        MAP.replace("0x008FFE00", "0x00900000"),
        MAP.replace("0x00300000  +", "0x00300000  *"),
        MAP.replace("0x00400000", "-0x00400000"),
    ],
)
def test_a_map_that_isn_t_one_is_refused(fake: Fake, text: str) -> None:
    fake("partclone.exfat", printing(text))
    assert refusal("exfat", exfat_disk())


def test_an_exfat_that_is_dirty_or_odd_is_refused(fake: Fake) -> None:
    fake("partclone.exfat", printing(MAP))
    assert "unmounted cleanly" in refusal("exfat", exfat_disk(flags=2))
    assert "features" in refusal("exfat", exfat_disk(fats=2))


# -- NTFS -----------------------------------------------------------------------------------------------------


def ntfs_disk() -> bytearray:
    disk = bytearray(16 * MIB)
    put_filesystem(disk, 0, "ntfs")
    struct.pack_into("<HB", disk, 11, 512, 8)
    struct.pack_into("<Q", disk, 40, 32767)
    return disk


NTFS_MAP = MAP.replace("0x008FFE00", "0x008FEE00")
NTFS_INFORMATION = "\tVolume Flags: 0x0000\n\tFree Clusters: 4000 (97.3%)"


def fake_ntfs(
    fake: Fake, *, information: str = NTFS_INFORMATION, journal: str = "printf '\\377%.0s' $(seq 8192)"
) -> None:
    fake("ntfsinfo", printing(information))
    fake(
        "ntfscat",
        f'if [ "$2" = hiberfil.sys ]; then echo "No such file or directory" >&2; exit 1; fi\n{journal}',
    )
    fake("partclone.ntfs", printing(NTFS_MAP))


def test_a_clean_ntfs(fake: Fake) -> None:
    fake_ntfs(fake)
    assert free_of("ntfs", ntfs_disk()) == [[3 * MIB, 7 * MIB], [7 * MIB + 512, 16 * MIB - 4096]]


def restart_page(sequence: int, client: int, flags: int) -> bytes:
    page = bytearray(b"RSTR".ljust(4096, b"\0"))
    struct.pack_into("<IIH", page, 16, 4096, 4096, 0x30)
    struct.pack_into("<QHHHH", page, 0x30, sequence, 1, 0xFFFF, client, flags)
    return bytes(page)


@pytest.mark.parametrize(
    ("pages", "clean"),
    [
        (restart_page(5, 0, 2) + restart_page(4, 0, 0), True),
        (restart_page(5, 0xFFFF, 0) + restart_page(4, 0, 0), True),
        (restart_page(4, 0xFFFF, 0) + restart_page(5, 0, 0), False),
        (restart_page(5, 0, 0) + bytes(4096), False),
        (bytes(8192), False),
        (restart_page(5, 0xFFFF, 0)[:16] + b"\xff" * 8176, False),
        (b"\xff" * 4000, False),
    ],
)
def test_the_latest_page_of_the_journal_decides(
    fake: Fake, tmp_path: Path, pages: bytes, clean: bool
) -> None:
    (tmp_path / "journal").write_bytes(pages)
    fake_ntfs(fake, journal=f"cat {tmp_path}/journal")
    if clean:
        assert free_of("ntfs", ntfs_disk())
    else:
        assert "journal" in refusal("ntfs", ntfs_disk())


def test_tools_that_contradict_each_other_are_not_trusted(fake: Fake) -> None:
    fake_ntfs(fake, information=NTFS_INFORMATION.replace("4000", "40"))
    assert "differently" in refusal("ntfs", ntfs_disk())
    fake_ntfs(fake, information="rubbish")
    assert "didn't count" in refusal("ntfs", ntfs_disk())
    fake_ntfs(fake, information=NTFS_INFORMATION.replace("0x0000", "0x0001"))
    assert "dirty" in refusal("ntfs", ntfs_disk())


# -- FAT and swap ---------------------------------------------------------------------------------------------


def fat_disk(entry_bits: int, used: set[int]) -> bytearray:
    """Make a FAT with two tables and clusters of 4 KiB."""
    clusters = {12: 3000, 16: 5000, 32: 70_000}[entry_bits]
    fat_sectors = -(-(clusters + 2) * entry_bits // 8 // 512) + 1
    root_entries = 0 if entry_bits == 32 else 512
    reserved = 32
    sectors = reserved + 2 * fat_sectors + root_entries * 32 // 512 + clusters * 8
    disk = bytearray(sectors * 512)
    put_filesystem(disk, 0, "vfat")
    short = sectors if sectors < 65536 else 0
    struct.pack_into("<HBHBHHBH", disk, 11, 512, 8, reserved, 2, root_entries, short, 0xF8, fat_sectors)
    struct.pack_into("<I", disk, 32, 0 if short else sectors)
    disk[36:40] = bytes(4)
    if entry_bits == 32:
        struct.pack_into("<H", disk, 22, 0)
        struct.pack_into("<I", disk, 36, fat_sectors)
    value = 0
    for cluster in used | {0, 1}:
        value |= (1 << entry_bits) - 1 << cluster * entry_bits
    table = value.to_bytes(fat_sectors * 512, "little")
    for index in range(2):
        at = (reserved + index * fat_sectors) * 512
        disk[at : at + len(table)] = table
    return disk


@pytest.mark.parametrize("entry_bits", [12, 16, 32])
def test_fat_clusters_are_free_where_their_entries_are_zero(entry_bits: int) -> None:
    rng = np.random.default_rng(entry_bits)
    used = set(rng.integers(2, 2900, 900).tolist()) | {2, 2999}
    disk = fat_disk(entry_bits, used)
    clusters = {12: 3000, 16: 5000, 32: 70_000}[entry_bits]
    data_offset = len(disk) - clusters * 4096
    free = {
        (start - data_offset) // 4096 + 2 + index
        for start, stop in free_of("vfat", disk, 4096)
        for index in range((stop - start) // 4096)
    }
    assert free == set(range(2, clusters + 2)) - used


@pytest.mark.parametrize("entry_bits", [16, 32])
def test_a_cluster_that_either_table_uses_is_used(entry_bits: int) -> None:
    disk = fat_disk(entry_bits, set())
    fat_bytes = (struct.unpack_from("<H", disk, 22)[0] or struct.unpack_from("<I", disk, 36)[0]) * 512
    disk[32 * 512 + fat_bytes + 100 * entry_bits // 8] = 1
    first, second = free_of("vfat", disk)
    assert second[0] - first[1] == 4096


def test_a_fat_that_is_dirty_is_refused() -> None:
    wide, narrow = fat_disk(32, set()), fat_disk(16, set())
    assert free_of("vfat", wide)
    wide[32 * 512 + 7] = 0x07
    narrow[32 * 512 + 3] = 0x7F
    for disk in (wide, narrow):
        assert "unmounted cleanly" in refusal("vfat", disk)
    mounted = fat_disk(12, set())
    mounted[37] = 1
    assert "unmounted cleanly" in refusal("vfat", mounted)


def test_a_fat_with_one_table_in_use_is_refused() -> None:
    disk = fat_disk(32, set())
    disk[40] = 0x80
    assert "only one" in refusal("vfat", disk)


def swap_disk(page_bytes: int = 4096, *, version: int = 1, magic: bytes = b"SWAPSPACE2") -> bytearray:
    disk = bytearray(MIB)
    disk[page_bytes - 10 : page_bytes] = magic
    struct.pack_into("<II", disk, 1024, version, MIB // page_bytes - 1)
    return disk


def test_swap_needs_only_its_first_page() -> None:
    assert free_of("swap", swap_disk()) == [[4096, MIB]]
    assert free_of("swap", swap_disk(65536)) == [[65536, MIB]]


def test_the_memory_of_a_hibernated_machine_is_kept() -> None:
    assert "hibernated" in refusal("swap", swap_disk(magic=b"S1SUSPEND\0"))
    assert "unknown version" in refusal("swap", swap_disk(version=2))


# -- garbage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filesystem", METHODS)
def test_garbage_behind_the_magic_is_refused_or_within_bounds(fake: Fake, filesystem: str) -> None:
    for tool in METHODS[filesystem].tools:
        fake(tool, "head -c 1000 /dev/urandom")
    rng = np.random.default_rng(9)
    for size in (0, 100, 600, 5000, 70_000, MIB):
        for _ in range(20):
            disk = bytearray(rng.bytes(size))
            try:
                ranges = free_of(filesystem, disk)
            except UsageUnknownError:
                continue
            assert all(0 <= start < stop <= size for start, stop in ranges)
