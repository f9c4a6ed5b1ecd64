"""Tests of the partclone reader: every format that partclone writes or reads, and damage that names its offset."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from protocol.constants import MIB
from protocol.errors import ForeignImageError
from sender.imaging.foreign.partclone_format import ChecksumMode
from sender.imaging.foreign.partclone_reader import PartcloneReader
from tests.support.disks.partclone_files import (
    HEADER_BYTES,
    ShortReads,
    build_partclone,
    clone,
    partclone_restores,
    repair_header,
)
from tests.support.network.lab import run

NAME = "sda1.ext4-ptcl-img"
VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "no checksums": {"checksum": False},
    "a checksum for each block": {"blocks_per_checksum": 1},
    "one checksum for all": {"blocks_per_checksum": 1000},
    "checksum of all before": {"restarts": False},
    "checksum of all before for each block": {"restarts": False, "blocks_per_checksum": 1},
    "bitmap of bytes": {"bitmap_mode": 8},
    "format 1": {"version": 1},
}


def make_blocks(count: int, block_bytes: int = 512, *, all_used: bool = False, seed: int = 1) -> list[bytes]:
    pick = random.Random(seed)
    blocks = [pick.randbytes(block_bytes) if all_used or pick.random() < 0.6 else b"" for _ in range(count)]
    blocks[1] = pick.randbytes(block_bytes)
    return blocks


def expected(blocks: list[bytes]) -> bytes:
    size = max(map(len, blocks))
    return b"".join(block.ljust(size, b"\0") for block in blocks)


def read(data: bytes) -> tuple[PartcloneReader, bytes]:
    reader = PartcloneReader(ShortReads(data), NAME)
    disk = bytearray(reader.header.device_bytes)
    for offset, run_data in reader.runs_untrusted():
        disk[offset : offset + len(run_data)] = run_data
    return reader, bytes(disk)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_is_read(options: dict[str, object]) -> None:
    blocks = make_blocks(203)
    reader, disk = read(build_partclone(blocks, **options))  # type: ignore[arg-type]
    assert disk == expected(blocks)
    used = np.concatenate(list(reader.used_ranges()))
    assert [blocks[start // 512] != b"" for start in range(0, len(disk), 512)] == [
        bool(((used[:, 0] <= start) & (start < used[:, 1])).any()) for start in range(0, len(disk), 512)
    ]


def test_an_image_without_a_bitmap_has_every_block() -> None:
    blocks = make_blocks(50, all_used=True)
    reader, disk = read(build_partclone(blocks, bitmap_mode=0))
    assert disk == expected(blocks)
    assert np.concatenate(list(reader.used_ranges())).tolist() == [[0, 50 * 512]]


@pytest.mark.parametrize("blocks_per_checksum", [1, 7, 8192, 20000])
def test_chunks_and_checksums_meet_at_any_place(blocks_per_checksum: int) -> None:
    """9 MiB take three chunks: a checksum may be in the middle, at the end or in the next one."""
    blocks = make_blocks(18_001, all_used=True)
    _, disk = read(build_partclone(blocks, blocks_per_checksum=blocks_per_checksum))
    assert disk == expected(blocks)


OPTIONS: dict[str, tuple[str, ...]] = {
    "default": (),
    "FOG": ("-a0",),
    "checksum for three blocks": ("-a1", "-k3"),
    "checksum of all before": ("-a1", "-K"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_files_of_the_installed_partclone_are_read(tmp_path: Path, options: tuple[str, ...]) -> None:
    source, image = tmp_path / "ext4", tmp_path / "image"
    source.write_bytes(bytes(48 * MIB))
    run("mkfs.ext4", "-q", "-d", Path(__file__).parent, source)
    clone(source, image, "partclone.ext4", *options)
    reader, disk = read(image.read_bytes())
    assert reader.header.tool_version
    assert reader.header.filesystem == "EXTFS"
    assert reader.header.checksum is (ChecksumMode.NONE if "-a0" in options else ChecksumMode.CRC32)
    raw = source.read_bytes()
    for start, stop in np.concatenate(list(reader.used_ranges())).tolist():
        assert disk[start:stop] == raw[start:stop]
    (tmp_path / "restored").write_bytes(disk)
    run("e2fsck", "-fn", tmp_path / "restored")


@pytest.mark.parametrize("version", [1, 2])
def test_partclone_reads_what_these_tests_build(tmp_path: Path, version: int) -> None:
    """Partclone writes no format 1 any more, but still reads it: it is the judge of the builder."""
    blocks = make_blocks(100, 4096)
    (tmp_path / "image").write_bytes(build_partclone(blocks, version=version))
    assert partclone_restores(tmp_path / "image", tmp_path / "disk", 100 * 4096)
    assert (tmp_path / "disk").read_bytes() == expected(blocks)


# -- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "no checksums"])
def test_a_flipped_bit_names_file_and_offset(variant: str) -> None:
    options = VARIANTS[variant]
    data = build_partclone(make_blocks(40), **options)  # type: ignore[arg-type]
    pick = random.Random(2)
    data_start = len(data) - 20 * 512
    for _ in range(30):
        # Format 1 covers the first byte of each block only.
        at = len(data) - 3 if options.get("version") == 1 else pick.randrange(data_start, len(data))
        damaged = bytearray(data)
        damaged[at] ^= 1 << pick.randrange(8)
        with pytest.raises(ForeignImageError, match=rf"{NAME}: damaged at offset \d+") as caught:
            read(bytes(damaged))
        named = int(str(caught.value).split("offset ")[1].split()[0])
        assert named <= at <= named + 1000 * 516


def test_a_flipped_bit_in_header_or_bitmap_is_found() -> None:
    data = build_partclone(make_blocks(40))
    for at in (20, 54, 90, 106, HEADER_BYTES[2], HEADER_BYTES[2] + 6):
        damaged = bytearray(data)
        damaged[at] ^= 2
        with pytest.raises(ForeignImageError, match=NAME):
            read(bytes(damaged))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_truncated_or_longer_file_is_refused(options: dict[str, object]) -> None:
    data = build_partclone(make_blocks(40), **options)  # type: ignore[arg-type]
    for length in (0, 20, 50, 112, 4200, len(data) - 513, len(data) - 1):
        if length < len(data):
            with pytest.raises(ForeignImageError, match=NAME):
                read(data[:length])
    with pytest.raises(ForeignImageError, match=f"offset {len(data)} .*data follows"):
        read(data + b"x")


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return repair_header(data[:offset] + value + data[offset + len(value) :])


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


LIES: dict[str, tuple[int, bytes]] = {
    "device smaller than its blocks": (52, number(40 * 512 - 1, 8)),
    "device of 2^63 bytes": (52, number(1 << 63, 8)),
    "no blocks": (60, number(0, 8)),
    "2^33 blocks": (60, number(1 << 33, 8)),
    "2^64 - 1 blocks": (60, number((1 << 64) - 1, 8)),
    "more blocks than the device": (60, number(41, 8)),
    "fewer used blocks than the bitmap": (76, number(3, 8)),
    "more used blocks than blocks": (76, number(41, 8)),
    "blocks of no bytes": (84, number(0, 4)),
    "blocks of 4 GiB": (84, number((1 << 32) - 1, 4)),
    "no blocks per checksum": (100, number(0, 4)),
    "no bitmap": (105, number(0, 1)),
}
UNSUPPORTED: dict[str, tuple[int, bytes]] = {
    "other magic": (0, b"Partclone"),
    "version 3": (30, b"0003"),
    "big endian": (34, b"\xc0\xde"),
    "other features": (88, number(19, 4)),
    "checksum XXH64": (96, number(0x30, 2) + number(8, 2)),
    "checksum of 2 bytes": (98, number(2, 2)),
    "bitmap mode 2": (105, number(2, 1)),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lie_in_the_header_is_damage(lie: tuple[int, bytes]) -> None:
    with pytest.raises(ForeignImageError, match=NAME):
        read(patched(build_partclone(make_blocks(40)), *lie))


@pytest.mark.parametrize("feature", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_an_unknown_feature_is_refused(feature: tuple[int, bytes]) -> None:
    with pytest.raises(ForeignImageError, match=NAME):
        read(patched(build_partclone(make_blocks(40)), *feature))


def test_an_announced_bitmap_costs_no_memory_before_it_arrives() -> None:
    """A file of 200 bytes can announce a bitmap of 512 MiB."""
    data = build_partclone(make_blocks(40), device_bytes=1 << 45)
    data = patched(data, 60, number(1 << 32, 8))
    tracemalloc.start()
    try:
        with pytest.raises(ForeignImageError, match="bitmap"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
