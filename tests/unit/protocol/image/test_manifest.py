"""The manifest: invalid ones must be refused, and huge ones must open at once."""

from __future__ import annotations

import mmap
import struct
import sys
import tracemalloc
from pathlib import Path

import msgpack
import numpy as np
import pytest
from blake3 import blake3

from protocol.constants import BLOCK_BYTES_DEFAULT, HASH_BYTES, METADATA_BYTES_MAX, MIB
from protocol.errors import ConfigurationError, ImageDamagedError, ImageFormatError
from protocol.image.manifest import BlockKind, KindSummary, Manifest
from protocol.image.manifest_format import (
    HEAD_BYTES,
    ManifestHead,
    ManifestLayout,
    build_manifest,
    build_manifest_start,
)

BLOCK_BYTES = 64 * 1024
KINDS = (BlockKind.DATA, BlockKind.RAW, BlockKind.ZERO, BlockKind.UNUSED, BlockKind.DATA)
STORED = (1000, BLOCK_BYTES, 0, 0, 99)
TAIL_BYTES = 100
RAW_BYTES = 4 * BLOCK_BYTES + TAIL_BYTES
HASHES = np.random.default_rng(1).integers(0, 256, (2, len(KINDS), HASH_BYTES)).astype(np.uint8)


def made(
    *,
    name: str = "golden",
    kinds: tuple[int, ...] = KINDS,
    stored: tuple[int, ...] = STORED,
    metadata: dict[str, object] | None = None,
) -> bytes:
    return build_manifest(
        name,
        RAW_BYTES,
        BLOCK_BYTES,
        np.array(kinds, np.uint8),
        np.array(stored, np.uint32),
        HASHES[0],
        HASHES[1],
        metadata or {},
    )


def layout_of(data: bytes) -> ManifestLayout:
    return ManifestLayout(*struct.unpack_from("<II", data, 24))


def test_a_built_manifest_is_parsed_to_the_same() -> None:
    data = made(metadata={"logical_sector_bytes": 4096})
    manifest = Manifest.parse_untrusted(data)
    assert (manifest.name, manifest.raw_bytes, manifest.block_bytes) == ("golden", RAW_BYTES, BLOCK_BYTES)
    assert manifest.block_count == len(KINDS)
    assert tuple(manifest.kind) == KINDS
    assert tuple(manifest.stored_bytes) == STORED
    assert np.array_equal(manifest.stored_hash, HASHES[0])
    assert np.array_equal(manifest.raw_hash, HASHES[1])
    assert manifest.metadata == {"logical_sector_bytes": 4096}
    assert manifest.data == data
    assert manifest.image_id == blake3(data).digest()


def test_derived_columns() -> None:
    manifest = Manifest.parse_untrusted(made())
    assert manifest.offsets.tolist() == [
        0,
        1000,
        1000 + BLOCK_BYTES,
        1000 + BLOCK_BYTES,
        1000 + BLOCK_BYTES,
        1099 + BLOCK_BYTES,
    ]
    assert manifest.payload_bytes == 1099 + BLOCK_BYTES
    assert manifest.stored_mask.tolist() == [True, True, False, False, True]
    assert [manifest.raw_length(block) for block in range(5)] == [BLOCK_BYTES] * 4 + [TAIL_BYTES]
    assert manifest.source_symbols(1440).tolist() == [1, 46, 0, 0, 1]
    assert manifest.source_symbols(1000).tolist() == [1, 66, 0, 0, 1]
    assert manifest.summary() == {
        BlockKind.DATA: KindSummary(2, BLOCK_BYTES + TAIL_BYTES, 1099),
        BlockKind.RAW: KindSummary(1, BLOCK_BYTES, BLOCK_BYTES),
        BlockKind.ZERO: KindSummary(1, BLOCK_BYTES, 0),
        BlockKind.UNUSED: KindSummary(1, BLOCK_BYTES, 0),
    }


def test_blocks_that_the_code_cannot_carry_are_refused_with_the_mend() -> None:
    with pytest.raises(ConfigurationError, match="--block-size"):
        Manifest.parse_untrusted(made()).source_symbols(256)


def test_columns_are_in_place_and_cannot_be_changed() -> None:
    data = bytearray(made())
    manifest = Manifest.parse_untrusted(data)
    whole = np.frombuffer(data, np.uint8)
    for column in (manifest.kind, manifest.stored_bytes, manifest.stored_hash, manifest.raw_hash):
        assert np.shares_memory(column, whole)
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        manifest.offsets[0] = 1
    with pytest.raises(TypeError):
        manifest.metadata["name"] = "other"  # type: ignore[index]


def test_a_terabyte_opens_without_a_step_per_block(tmp_path: Path) -> None:
    """Otherwise the commands on a large image would take minutes to start, and gigabytes of memory."""
    block_count = 4 << 20
    start, layout = build_manifest_start(
        "large", block_count * BLOCK_BYTES_DEFAULT, BLOCK_BYTES_DEFAULT, {"logical_sector_bytes": 512}
    )
    path = tmp_path / "manifest"
    with path.open("w+b") as file:
        file.write(start)
        file.seek(layout.kind_offset)
        file.write(bytes([BlockKind.ZERO]) * block_count)
        file.truncate(layout.manifest_bytes)
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    calls = 0

    def count_call(*_: object) -> None:
        nonlocal calls
        calls += 1

    tracemalloc.start()
    sys.setprofile(count_call)
    try:
        manifest = Manifest.parse_untrusted(mapping)
    finally:
        sys.setprofile(None)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert manifest.block_count == block_count
    assert calls < 2000
    assert peak_bytes < 32 * MIB < layout.manifest_bytes / 8


def test_unknown_metadata_is_kept_and_ignored() -> None:
    """Later versions must be able to add metadata without excluding this version."""
    extra = {"filesystems": ({"type": "ext4", "free": 7},), "zone": None, "logical_sector_bytes": 512}
    assert Manifest.parse_untrusted(made(metadata=extra)).metadata == extra


def test_equal_metadata_gives_equal_images() -> None:
    assert made(metadata={"a": 1, "b": 2}) == made(metadata={"b": 2, "a": 1})


@pytest.mark.parametrize(
    "metadata",
    [
        {"logical_sector_bytes": 4},
        {"logical_sector_bytes": "512"},
        {"deep": [[[[1]]]]},
        {"large": "x" * METADATA_BYTES_MAX},
        {1: "key"},
        {"nested": {1: "key"}},
        {"ext": msgpack.ExtType(5, b"")},
    ],
    ids=["range", "type", "nesting", "size", "key", "nested key", "extension"],
)
def test_metadata_that_no_reader_would_accept_is_not_packed(metadata: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="metadata"):
        made(metadata=metadata)


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", "n" * 65, "\ud800", "a\0b"])
def test_names_that_would_spoil_a_terminal_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        made(name=name)


@pytest.mark.parametrize("block_bytes", [0, 32 * 1024, 100_000, 8 * MIB, -65536])
def test_block_sizes_out_of_limits_are_refused(block_bytes: int) -> None:
    with pytest.raises(ConfigurationError, match="power of two"):
        build_manifest_start("n", RAW_BYTES, block_bytes, {})


@pytest.mark.parametrize("raw_bytes", [0, (64 << 40) + 1, 1 << 45])
def test_disks_out_of_limits_are_refused(raw_bytes: int) -> None:
    with pytest.raises(ConfigurationError, match="limits"):
        build_manifest_start("n", raw_bytes, BLOCK_BYTES, {})


@pytest.mark.parametrize(
    ("kinds", "stored", "block"),
    [
        ((0, 1, 2, 3, 4), STORED, 4),
        ((0, 1, 200, 3, 0), STORED, 2),
        (KINDS, (0, BLOCK_BYTES, 0, 0, 99), 0),
        (KINDS, (BLOCK_BYTES, BLOCK_BYTES, 0, 0, 99), 0),
        (KINDS, (1000, BLOCK_BYTES - 1, 0, 0, 99), 1),
        (KINDS, (1000, BLOCK_BYTES + 1, 0, 0, 99), 1),
        (KINDS, (1000, BLOCK_BYTES, 1, 0, 99), 2),
        (KINDS, (1000, BLOCK_BYTES, 0, BLOCK_BYTES, 99), 3),
        (KINDS, (1000, BLOCK_BYTES, 0, 0, TAIL_BYTES), 4),
        (KINDS, (1000, BLOCK_BYTES, 0, 0, 4_000_000_000), 4),
    ],
)
def test_sizes_that_do_not_fit_their_kind_are_refused_by_block(
    kinds: tuple[int, ...], stored: tuple[int, ...], block: int
) -> None:
    with pytest.raises(ImageDamagedError, match=f"block {block} "):
        Manifest.parse_untrusted(made(kinds=kinds, stored=stored))


def with_field(name: str, value: bytes) -> bytes:
    data = bytearray(made())
    offset = 0
    for field in ManifestHead.FIELDS:
        width = field.kind.bits // 8 if hasattr(field.kind, "bits") else field.kind.bytes_exact  # type: ignore[union-attr]
        if field.name == name:
            data[offset : offset + len(value)] = value
            return bytes(data)
        offset += width
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", struct.pack("<I", 0)),
        ("block_bytes", struct.pack("<I", 70_000)),
        ("block_bytes", struct.pack("<I", 1 << 30)),
        ("block_bytes", struct.pack("<I", 2 * BLOCK_BYTES)),
        ("raw_bytes", struct.pack("<Q", 0)),
        ("raw_bytes", struct.pack("<Q", 1 << 60)),
        ("block_count", struct.pack("<I", 4)),
        ("block_count", struct.pack("<I", 0)),
        ("metadata_bytes", struct.pack("<I", 0)),
        ("metadata_bytes", struct.pack("<I", 65)),
        ("name", b"\0"),
        ("name", b"\xff"),
        ("name", b"a\x07"),
        ("reserved", b"\1"),
    ],
)
def test_a_broken_head_is_refused(name: str, value: bytes) -> None:
    with pytest.raises(ImageDamagedError):
        Manifest.parse_untrusted(with_field(name, value))


def test_a_newer_format_is_named() -> None:
    with pytest.raises(ImageFormatError, match="newer"):
        Manifest.parse_untrusted(with_field("version", struct.pack("<I", 2)))


def test_other_bytes_are_no_manifest() -> None:
    with pytest.raises(ImageFormatError, match="isn't"):
        Manifest.parse_untrusted(bytes(1000))


@pytest.mark.parametrize("change", [-1, 1, 64])
def test_a_wrong_length_is_refused(change: int) -> None:
    data = made()
    wrong = data[:change] if change < 0 else data + bytes(change)
    with pytest.raises(ImageDamagedError, match="bytes"):
        Manifest.parse_untrusted(wrong)


def test_a_manifest_shorter_than_its_head_is_refused() -> None:
    with pytest.raises(ImageDamagedError, match="truncated"):
        Manifest.parse_untrusted(made()[: HEAD_BYTES - 1])


def test_padding_must_be_zero() -> None:
    """An image has one manifest: meaningless bytes can't change its id."""
    layout = layout_of(made())
    n = len(KINDS)
    for offset in (
        HEAD_BYTES + layout.metadata_bytes,
        layout.stored_bytes_offset + 4 * n,
        layout.kind_offset + n,
        layout.stored_hash_offset + HASH_BYTES * n,
        layout.manifest_bytes - 1,
    ):
        data = bytearray(made())
        data[offset] = 1
        with pytest.raises(ImageDamagedError, match="zero"):
            Manifest.parse_untrusted(data)


@pytest.mark.parametrize(
    "packed", [b"\xc1", b"\x90", b"\x81\xa1a", b"\xa1a", b"\x81\xa1\xff\x01", b"\x81\x01\x02"]
)
def test_metadata_that_is_no_map_of_text_is_refused(packed: bytes) -> None:
    data = bytearray(made())
    data[HEAD_BYTES : HEAD_BYTES + 64] = packed.ljust(64, b"\0")
    struct.pack_into("<I", data, 28, len(packed))
    with pytest.raises(ImageDamagedError, match="metadata"):
        Manifest.parse_untrusted(data)
