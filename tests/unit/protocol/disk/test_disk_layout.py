"""Disk layouts: a wrong one would treat used blocks as free, or let a half-written disk boot."""

from __future__ import annotations

import pytest

from protocol.constants import KIB, MIB
from protocol.disk.disk_layout import layout_metadata, layout_of
from protocol.disk.filesystem_magic import FILESYSTEMS, container_signature, detect_filesystem, is_hibernated
from protocol.disk.partition_table import (
    PARTITIONS_MAX,
    DiskLayout,
    Partition,
    TableKind,
    parse_layout_untrusted,
)
from protocol.errors import ImageDamagedError
from protocol.image.image_metadata import pack_metadata, parse_metadata_untrusted
from tests.support.disks.disk_layouts import (
    EFI_GUID,
    LINUX_GUID,
    gpt_entry,
    mbr_entry,
    put_boot_record,
    put_filesystem,
    put_gpt,
    reader,
)


def parsed(disk: bytearray, **options: int) -> DiskLayout:
    return parse_layout_untrusted(reader(disk), len(disk), **options)


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("hint_bytes", [512, 4096])
def test_a_gpt_is_found_with_any_sector_size(sector_bytes: int, hint_bytes: int) -> None:
    disk = bytearray(4 * MIB)
    first, last = MIB // sector_bytes, 3 * MIB // sector_bytes - 1
    put_gpt(disk, [gpt_entry(first, last, "Daten ä", EFI_GUID)], sector_bytes=sector_bytes)
    put_filesystem(disk, MIB, "vfat")
    layout = parsed(disk, sector_bytes=hint_bytes)
    assert layout == DiskLayout(
        TableKind.GPT, sector_bytes, (Partition(1, MIB, 2 * MIB, EFI_GUID, "Daten ä", "vfat"),)
    )


def test_numbers_of_gpt_partitions_are_their_entries() -> None:
    disk = bytearray(4 * MIB)
    put_gpt(disk, [bytes(128), gpt_entry(2048, 4095), bytes(128), gpt_entry(4096, 5000)])
    assert [part.number for part in parsed(disk).partitions] == [2, 4]


@pytest.mark.parametrize("damaged", [512 + 8, 512 + 72, 1024 + 40])
def test_a_damaged_gpt_is_read_from_its_backup(damaged: int) -> None:
    disk = bytearray(4 * MIB)
    put_gpt(disk, [gpt_entry(2048, 4095)])
    disk[damaged] ^= 1
    layout = parsed(disk)
    assert (layout.table, len(layout.partitions)) == (TableKind.GPT, 1)


def test_a_gpt_with_both_copies_damaged_is_none() -> None:
    disk = bytearray(4 * MIB)
    put_gpt(disk, [gpt_entry(2048, 4095)])
    disk[512 + 8] ^= 1
    disk[-512 + 8] ^= 1
    assert parsed(disk) == DiskLayout(TableKind.NONE, 512, ())


def test_a_hybrid_mbr_stands_for_its_gpt() -> None:
    disk = bytearray(4 * MIB)
    put_gpt(disk, [gpt_entry(2048, 4095)], hybrid=mbr_entry(0x83, 3000, 100))
    layout = parsed(disk)
    assert (layout.table, layout.partitions[0].start_bytes) == (TableKind.GPT, MIB)


def test_a_gpt_under_a_plain_mbr_is_a_leftover() -> None:
    disk = bytearray(4 * MIB)
    put_gpt(disk, [gpt_entry(2048, 4095)])
    put_boot_record(disk, 0, mbr_entry(0x07, 64, 1000))
    layout = parsed(disk)
    assert (layout.table, layout.partitions[0].type) == (TableKind.MBR, "0x07")


def test_mbr_primary_extended_and_logical_partitions_with_their_boot_records() -> None:
    disk = bytearray(8 * MIB)
    put_boot_record(disk, 0, mbr_entry(0x83, 2048, 2048, 0x80), mbr_entry(0x0F, 4096, 12288))
    put_boot_record(disk, 4096 * 512, mbr_entry(0x83, 64, 1984), mbr_entry(0x05, 2048, 4096))
    put_boot_record(disk, 6144 * 512, mbr_entry(0x82, 64, 4032))
    put_filesystem(disk, MIB, "ext4")
    put_filesystem(disk, (4096 + 64) * 512, "xfs")
    put_filesystem(disk, (6144 + 64) * 512, "swap")
    layout = parsed(disk)
    assert layout.table == TableKind.MBR
    assert layout.boot_record_offsets == (4096 * 512, 6144 * 512)
    found = [
        (part.number, part.type, part.start_bytes // 512, part.size_bytes // 512, part.filesystem)
        for part in layout.partitions
    ]
    assert found == [
        (1, "0x83", 2048, 2048, "ext4"),
        (2, "0x0F", 4096, 12288, ""),
        (5, "0x83", 4160, 1984, "xfs"),
        (6, "0x82", 6208, 4032, "swap"),
    ]
    assert [part.is_extended for part in layout.partitions] == [False, True, False, False]


def test_mbr_counts_in_the_disk_s_own_sectors() -> None:
    disk = bytearray(8 * MIB)
    put_boot_record(disk, 0, mbr_entry(0x83, 256, 1024))
    assert parsed(disk, sector_bytes=4096).partitions[0].start_bytes == MIB


def test_a_chain_of_boot_records_that_bites_its_tail_ends() -> None:
    disk = bytearray(8 * MIB)
    put_boot_record(disk, 0, mbr_entry(0x05, 2048, 8192))
    put_boot_record(disk, MIB, mbr_entry(0x83, 64, 100), mbr_entry(0x05, 2048, 100))
    put_boot_record(disk, 2 * MIB, mbr_entry(0x83, 64, 100), mbr_entry(0x05, 2048, 100))
    assert parsed(disk).boot_record_offsets == (MIB, 2 * MIB)


def test_partitions_end_with_the_disk_and_those_beyond_are_none() -> None:
    disk = bytearray(4 * MIB)
    put_boot_record(disk, 0, mbr_entry(0x83, 4096, 1 << 30), mbr_entry(0x83, 1 << 30, 2048))
    (partition,) = parsed(disk).partitions
    assert (partition.start_bytes, partition.size_bytes) == (2 * MIB, 2 * MIB)


@pytest.mark.parametrize("filesystem", ["vfat", "ntfs", "exfat"])
def test_a_boot_sector_of_a_filesystem_is_no_partition_table(filesystem: str) -> None:
    disk = bytearray(MIB)
    put_filesystem(disk, 0, filesystem)
    disk[446:462] = mbr_entry(0x83, 64, 100)
    assert parsed(disk) == DiskLayout(TableKind.NONE, 512, (), filesystem=filesystem)


def test_an_empty_disk_and_a_tiny_one_have_no_table() -> None:
    for size_bytes in (0, 1, 511, 512, 4096, MIB):
        assert parsed(bytearray(size_bytes)).table == TableKind.NONE


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_each_filesystem_is_detected_by_its_magic(filesystem: str) -> None:
    disk = bytearray(MIB)
    put_filesystem(disk, 0, filesystem)
    assert detect_filesystem(reader(disk)) == filesystem
    assert parsed(disk).filesystem == filesystem


def test_two_filesystems_in_one_place_are_neither() -> None:
    disk = bytearray(MIB)
    put_filesystem(disk, 0, "ext4")
    put_filesystem(disk, 0, "btrfs")
    assert detect_filesystem(reader(disk)) == ""


def test_an_external_journal_is_no_filesystem() -> None:
    disk = bytearray(MIB)
    put_filesystem(disk, 0, "ext4")
    disk[1024 + 96] = 0x8
    assert detect_filesystem(reader(disk)) == ""


@pytest.mark.parametrize("page_bytes", [4 * KIB, 16 * KIB, 64 * KIB])
def test_swap_is_detected_with_every_page_size_and_hibernation(page_bytes: int) -> None:
    disk = bytearray(MIB)
    disk[page_bytes - 10 : page_bytes] = b"SWAPSPACE2"
    assert (detect_filesystem(reader(disk)), is_hibernated(bytes(disk))) == ("swap", False)
    disk[page_bytes - 10 : page_bytes] = b"S1SUSPEND\0"
    assert (detect_filesystem(reader(disk)), is_hibernated(bytes(disk))) == ("swap", True)


@pytest.mark.parametrize(
    ("offset", "magic", "says"),
    [
        (512, b"LABELONE", "LVM"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (3, b"-FVE-FS-", "BitLocker"),
        (4096, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
        (MIB - 8192, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
        (MIB - 65536, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
        (MIB - 512, b"\xde\x11\xde\x11", "DDF"),
        (MIB - 1024, b"Intel Raid ISM Cfg Sig. 1.3.00", "Intel"),
        (0, b"", ""),
    ],
)
def test_a_member_of_a_container_is_detected(offset: int, magic: bytes, says: str) -> None:
    disk = bytearray(MIB)
    disk[offset : offset + len(magic)] = magic
    found = container_signature(reader(disk), len(disk))
    assert says in found
    assert bool(says) == bool(found)


# -- metadata -------------------------------------------------------------------------------------------------


LAYOUT = DiskLayout(
    TableKind.MBR,
    512,
    (Partition(1, MIB, MIB, "0x83", "", "ext4"), Partition(5, 3 * MIB, MIB, "0x07", "", "ntfs")),
    (2 * MIB,),
)


def through_metadata(layout: DiskLayout) -> DiskLayout | None:
    return layout_of(parse_metadata_untrusted(pack_metadata({"layout": layout_metadata(layout)})))


def test_a_layout_comes_back_from_metadata() -> None:
    assert through_metadata(LAYOUT) == LAYOUT


def test_the_largest_layout_fits_into_metadata() -> None:
    partition = Partition(2**16, 2**46, 2**46, LINUX_GUID, "\uffee" * 36, "exfat")
    layout = DiskLayout(TableKind.GPT, 4096, (partition,) * PARTITIONS_MAX, (2**46,) * 128, "")
    assert through_metadata(layout) == layout


def test_an_image_without_a_layout_has_none() -> None:
    assert layout_of({"logical_sector_bytes": 512}) is None


def test_a_filesystem_of_a_later_version_is_unknown_and_no_damage() -> None:
    fields = layout_metadata(LAYOUT) | {"filesystem": "bcachefs", "later": 1}
    found = layout_of({"layout": fields})
    assert found is not None
    assert found.filesystem == ""


@pytest.mark.parametrize(
    "change",
    [
        {"table": "apm"},
        {"table": 1},
        {"sector_bytes": 0},
        {"sector_bytes": True},
        {"partitions": 7},
        {"partitions": ("x",)},
        {"partitions": ({"number": 1},)},
        {"partitions": ({"number": 1, "start_bytes": -1, "size_bytes": 1, "type": "", "name": ""},)},
        {"boot_record_offsets": (2**63,)},
        {"boot_record_offsets": (1,) * 129},
        {"filesystem": "a" * 200},
        {"filesystem": "\x1b[2J"},
    ],
)
def test_a_layout_that_was_tampered_with_is_damage(change: dict[str, object]) -> None:
    with pytest.raises(ImageDamagedError):
        layout_of({"layout": layout_metadata(LAYOUT) | change})
    for layout in (None, 7, (), "gpt"):
        with pytest.raises(ImageDamagedError):
            layout_of({"layout": layout})


@pytest.mark.parametrize("value", [b"", bytes(31), "0" * 32, 7])
def test_a_source_hash_that_is_none_is_damage(value: object) -> None:
    with pytest.raises(ImageDamagedError):
        parse_metadata_untrusted(_packed({"source_sha256": value}))


def _packed(metadata: dict[str, object]) -> bytes:
    import msgpack

    packed: bytes = msgpack.packb(metadata)
    return packed
