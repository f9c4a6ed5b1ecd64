"""Disks with any content: reading their layout never fails, and never finds a partition outside the disk."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import KIB
from protocol.disk.disk_layout import layout_metadata, layout_of
from protocol.disk.filesystem_magic import FILESYSTEMS, container_signature, is_hibernated
from protocol.disk.partition_table import parse_layout_untrusted
from protocol.errors import ImageDamagedError
from protocol.image.image_metadata import pack_metadata, parse_metadata_untrusted
from tests.support.disks.disk_layouts import (
    gpt_entry,
    mbr_entry,
    put_boot_record,
    put_filesystem,
    put_gpt,
    reader,
)

DISK_BYTES = 512 * KIB
sectors = st.integers(0, 2**32 - 1) | st.integers(0, 1100)


@st.composite
def disks(draw: st.DrawFn) -> bytearray:
    """Return a disk with valid structures in odd places, some of them altered."""
    disk = bytearray(DISK_BYTES)
    for _ in range(draw(st.integers(0, 2))):
        entries = [mbr_entry(draw(st.integers(0, 255)), draw(sectors), draw(sectors)) for _ in range(4)]
        put_boot_record(disk, 512 * draw(st.integers(0, 1000)), *entries)
    match draw(st.sampled_from(["none", "mbr", "gpt"])):
        case "mbr":
            kinds = st.sampled_from([0, 5, 15, 0x83, 0x85, 0xEE])
            entries = [mbr_entry(draw(kinds), draw(sectors), draw(sectors)) for _ in range(4)]
            put_boot_record(disk, 0, *entries)
        case "gpt":
            wide = st.integers(0, 2**64 - 1) | st.integers(0, 1100)
            entries = [gpt_entry(draw(wide), draw(wide)) for _ in range(draw(st.integers(0, 4)))]
            put_gpt(disk, entries, sector_bytes=draw(st.sampled_from([512, 4096])))
    if draw(st.booleans()):
        put_filesystem(disk, 512 * draw(st.integers(0, 800)), draw(st.sampled_from(FILESYSTEMS)))
    for position in draw(st.lists(st.integers(0, 2047) | st.integers(0, DISK_BYTES - 1), max_size=4)):
        disk[position] = draw(st.integers(0, 255))
    return disk


def check(disk: bytes | bytearray) -> None:
    read = reader(disk)
    for sector_bytes in (512, 4096):
        layout = parse_layout_untrusted(read, len(disk), sector_bytes=sector_bytes)
        for part in layout.partitions:
            assert 0 < part.start_bytes < part.stop_bytes <= len(disk)
        assert all(0 < offset < len(disk) for offset in layout.boot_record_offsets)
        packed = pack_metadata({"layout": layout_metadata(layout)})
        assert layout_of(parse_metadata_untrusted(packed)) == layout
    container_signature(read, len(disk))
    is_hibernated(bytes(disk))


@given(disks())
def test_a_disk_with_odd_tables_is_read_within_its_bounds(disk: bytearray) -> None:
    check(disk)


@given(st.binary(max_size=6000), st.booleans())
def test_garbage_is_read_too(garbage: bytes, signed: bool) -> None:
    check(garbage[:510].ljust(510, b"\0") + b"\x55\xaa" + garbage[510:] if signed else garbage)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.sampled_from(
                ["table", "sector_bytes", "partitions", "boot_record_offsets", "filesystem", "type"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@given(plain)
def test_metadata_that_is_no_layout_raises_only_that_it_is_damaged(value: object) -> None:
    try:
        layout_of({"layout": value})
    except ImageDamagedError:
        return
