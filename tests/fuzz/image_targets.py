"""Fuzz targets of the image: files from anywhere, manifests and blocks from a sender, metadata, and old disks."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable

import msgpack
import numpy as np
from blake3 import blake3

from protocol.constants import HASH_BYTES, KIB, MIB
from protocol.disk.disk_layout import layout_metadata, layout_of_untrusted
from protocol.disk.fat import FatError, has_fat_file_untrusted
from protocol.disk.filesystem_magic import FILESYSTEMS
from protocol.disk.gpt import (
    has_backup_at_end_untrusted,
    move_backup_untrusted,
    usable_stop_bytes_untrusted,
)
from protocol.disk.partition_table import parse_layout_untrusted
from protocol.errors import ImageDamagedError, ImageFormatError
from protocol.image.bad_ranges import BadRange, BadRanges
from protocol.image.block_codec import BlockDecoder, BlockEncoder
from protocol.image.image_format import PAGE_BYTES, build_header, parse_header_untrusted
from protocol.image.image_metadata import pack_metadata, parse_metadata_untrusted
from protocol.image.incomplete_marker import Marker, build_marker, parse_marker_untrusted
from protocol.image.manifest import BlockKind, Manifest
from protocol.image.manifest_format import build_manifest
from protocol.image.provenance import Provenance, SourceChecksums
from protocol.packing.filesystems.superblocks import UsageUnknownError, read_superblock_untrusted
from receiver.disk.fit.filesystem import GROWERS, filesystem_bytes_untrusted
from receiver.disk.inventory.disk_contents import parse_contents
from tests.fuzz.target import Structure, Target
from tests.support.disks.disk_layouts import gpt_entry, mbr_entry, put_boot_record, put_filesystem, put_gpt
from tests.support.disks.fat import fat_filesystem

IMAGE_ERRORS = (ImageFormatError, ImageDamagedError)
BLOCK_BYTES = 64 * KIB
RAW_BYTES = 4 * KIB
DISK_BYTES = 1 * MIB
DISK_PREFIX = 24 * KIB


def _layout() -> object:
    disk = bytearray(4 * MIB)
    put_gpt(disk, [gpt_entry(2048, 4095, "EFI"), gpt_entry(4096, 6143, "root")])
    put_filesystem(disk, 2048 * 512, "vfat")
    return parse_layout_untrusted(lambda at, length: bytes(disk[at : at + length]), len(disk))


def _manifest(block_count: int, metadata: dict[str, object]) -> bytes:
    kinds = np.resize(np.array([BlockKind.DATA, BlockKind.ZERO, BlockKind.UNUSED], np.uint8), block_count)
    sizes = np.where(kinds == BlockKind.DATA, 100, 0).astype(np.uint32)
    hashes = np.zeros((block_count, HASH_BYTES), np.uint8)
    return build_manifest(
        "golden", block_count * BLOCK_BYTES - 512, BLOCK_BYTES, kinds, sizes, hashes, hashes, metadata
    )


def _manifest_seeds() -> list[bytes]:
    return [_manifest(1, {}), _manifest(9, _plain_metadata()), _manifest(300, _plain_metadata())]


def _plain_metadata() -> dict[str, object]:
    return {"layout": layout_metadata(_layout())}  # type: ignore[arg-type]


def _repair_header(data: bytes) -> bytes:
    record = data[: PAGE_BYTES - HASH_BYTES].ljust(PAGE_BYTES - HASH_BYTES, b"\0")
    return record + blake3(record).digest()


def _stored_block_seeds() -> list[bytes]:
    encoder = BlockEncoder(3, BLOCK_BYTES)
    pick = random.Random(1)
    blocks = (bytes(RAW_BYTES), b"text " * 1000, pick.randbytes(RAW_BYTES // 2) * 2)
    return [bytes(encoder.encode(memoryview(block[:RAW_BYTES].ljust(RAW_BYTES)))[1]) for block in blocks]


def _decode_block(data: bytes) -> object:
    into = memoryview(bytearray(RAW_BYTES))
    decoder = BlockDecoder()
    for kind in (BlockKind.DATA, BlockKind.RAW):
        try:
            decoder.decode_into_untrusted(kind, data, into)
        except ImageDamagedError:
            continue
    return decoder.decode_untrusted(BlockKind.DATA, data, RAW_BYTES)


# -- disks ----------------------------------------------------------------------------------------------------


def disk_reader(data: bytes, disk_bytes: int = DISK_BYTES) -> Callable[[int, int], bytes]:
    """Return a reader that takes the same arguments as ``os.pread`` and refuses the same."""

    def read(offset: int, length: int) -> bytes:
        if not -(1 << 63) <= offset < 1 << 63 or not -(1 << 63) <= length < 1 << 63:
            raise OverflowError("os.pread takes 64-bit numbers")
        if offset < 0 or length < 0:
            raise OSError(22, os.strerror(22))
        if length > 64 * MIB:
            raise MemoryError(f"a read of {length} bytes")
        return data[offset : min(disk_bytes, offset + length)].ljust(
            max(0, min(disk_bytes - offset, length)), b"\0"
        )

    return read


def _disk_seeds() -> list[bytes]:
    """Return the starts of disks: the rest of such a disk is zero, and a GPT's backup isn't there."""
    gpt = bytearray(DISK_BYTES)
    put_gpt(gpt, [gpt_entry(40, 60, "EFI"), gpt_entry(64, 200, "root")], entry_count=16)
    put_filesystem(gpt, 40 * 512, "vfat")
    hybrid = bytearray(DISK_BYTES)
    put_gpt(hybrid, [gpt_entry(40, 60)], entry_count=16, hybrid=mbr_entry(0x83, 40, 20))
    mbr = bytearray(DISK_BYTES)
    put_boot_record(mbr, 0, mbr_entry(0x83, 2, 10, 0x80), mbr_entry(5, 16, 30))
    put_boot_record(mbr, 16 * 512, mbr_entry(0x83, 1, 4), mbr_entry(5, 8, 10))
    put_boot_record(mbr, 24 * 512, mbr_entry(0x83, 1, 4))
    marker = build_marker(Marker(bytes(32), "golden", 1 << 40))
    return [bytes(disk[:DISK_PREFIX]) for disk in (gpt, hybrid, mbr)] + [marker]


def _repair_gpt(data: bytes) -> bytes:
    disk = bytearray(data.ljust(DISK_PREFIX, b"\0"))
    if disk[512:520] != b"EFI PART":
        return bytes(disk)
    header_bytes = min(512, max(92, struct.unpack_from("<I", disk, 512 + 12)[0]))
    array_sector, count, entry_bytes = struct.unpack_from("<QII", disk, 512 + 72)
    start, stop = array_sector * 512, array_sector * 512 + count * entry_bytes
    if stop <= len(disk):
        struct.pack_into("<I", disk, 512 + 88, zlib.crc32(disk[start:stop]))
    struct.pack_into("<I", disk, 512 + 16, 0)
    struct.pack_into("<I", disk, 512 + 16, zlib.crc32(disk[512 : 512 + header_bytes]))
    return bytes(disk)


def _look_at_disk(data: bytes) -> object:
    read = disk_reader(data)
    for sector_bytes in (512, 4096):
        parse_contents(read, DISK_BYTES, sector_bytes)
        has_backup_at_end_untrusted(read, DISK_BYTES, sector_bytes)
        usable_stop_bytes_untrusted(read, sector_bytes)
        move_backup_untrusted(read, 2 * DISK_BYTES, sector_bytes)
    return parse_layout_untrusted(read, DISK_BYTES)


def _superblock_seeds() -> list[bytes]:
    seeds = []
    for filesystem in FILESYSTEMS:
        disk = bytearray(128 * KIB)
        put_filesystem(disk, 0, filesystem)
        seeds.append(bytes(disk))
    return seeds


def _read_superblocks(data: bytes) -> object:
    read = disk_reader(data, 1 << 50)
    for filesystem in FILESYSTEMS:
        try:
            read_superblock_untrusted(filesystem, read, 1 << 50)
        except UsageUnknownError:
            continue
    return [filesystem_bytes_untrusted(read, kind) for kind in GROWERS]


def _fat_seeds() -> list[bytes]:
    """Return FATs with a long and a short name, whose whole content is in the first sectors."""
    return [bytes(fat_filesystem(bits, loader="bootriscv64.efi")[: 16 * KIB]) for bits in (12, 32)]


PROVENANCE = Provenance("fog", SourceChecksums.NONE, "diskcast", "1.0", "partclone 0.3.13")

TARGETS = (
    Target(
        "image header",
        parse_header_untrusted,
        IMAGE_ERRORS,
        lambda: [build_header(manifest_bytes=5000, payload_bytes=1 << 30, image_id=bytes(32)).to_page()],
        repair=_repair_header,
    ),
    Target("manifest", Manifest.parse_untrusted, IMAGE_ERRORS, _manifest_seeds, share=4),
    Target(
        "image metadata",
        parse_metadata_untrusted,
        IMAGE_ERRORS,
        lambda: [
            pack_metadata(_plain_metadata()),
            pack_metadata({"comment": "x", "later": [1, {"a": b""}]}),
            pack_metadata({"provenance": PROVENANCE.to_metadata()}),
        ],
        structure=Structure.MSGPACK_BODY,
    ),
    Target(
        "disk layout of the metadata",
        lambda data: layout_of_untrusted(msgpack.unpackb(data, use_list=False, strict_map_key=False)),
        (ImageDamagedError, ValueError, TypeError, msgpack.UnpackException),
        lambda: [msgpack.packb(layout_metadata(_layout()))],  # type: ignore[arg-type]
        structure=Structure.MSGPACK_BODY,
    ),
    Target(
        "unreadable ranges of the metadata",
        BadRanges.decode_untrusted,
        (ImageDamagedError,),
        lambda: [
            BadRanges.of([BadRange(index * 4096, 512) for index in range(n)]).encode() for n in (0, 3, 300)
        ],
    ),
    Target("stored block", _decode_block, (ImageDamagedError,), _stored_block_seeds),
    Target(
        "incomplete marker",
        parse_marker_untrusted,
        (),
        lambda: [build_marker(Marker(bytes(32), "Prüfraum", 1 << 40))],
    ),
    Target("partition table", _look_at_disk, (), _disk_seeds, repair=_repair_gpt, share=2),
    Target(
        "FAT directories",
        lambda data: has_fat_file_untrusted(disk_reader(data, 1 << 50), r"\EFI\BOOT\BOOTRISCV64.EFI"),
        (FatError,),
        _fat_seeds,
        share=2,
    ),
    Target("superblocks", _read_superblocks, (), _superblock_seeds, share=3),
)
