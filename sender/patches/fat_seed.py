"""A FAT12 of 4 MiB with a few files in its root directory, as bytes: equal files give equal bytes everywhere.

The structures are those of Microsoft's FAT specification 1.03. Only the start of the filesystem is built: everything
behind the last file is zeros, as in the image.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from blake3 import blake3

from protocol.disk.seed_partition import SEED_PARTITION_BYTES
from protocol.errors import ConfigurationError

LABEL: Final = b"CIDATA     "
"""The label by which cloud-init's NoCloud finds its seed."""

_CLUSTER_BYTES: Final = 4096
"""1017 clusters: far from the 4085 from which a FAT would be FAT16, for sectors of 512 bytes and of 4 KiB."""
_MEDIA: Final = 0xF8
_ROOT_ENTRIES: Final = 128
_ENTRY_BYTES: Final = 32
_END: Final = 0xFFF
_ARCHIVE, _VOLUME_LABEL, _LONG_NAME = 0x20, 0x08, 0x0F
_LONG_NAME_CHARS: Final = 13
_DATE: Final = (2000 - 1980) << 9 | 1 << 5 | 1
"""1 January 2000: a time of the build would make each patch differ."""


def build_fat_seed(files: Mapping[str, bytes], sector_bytes: int = 512) -> bytes:
    """Return the start of the filesystem, up to the end of the last file.

    Args:
        files: content by file name, ASCII.
        sector_bytes: logical sector size of the disk: no kernel mounts a FAT with smaller sectors.

    Raises:
        ConfigurationError: the files don't fit.
    """
    sector_count = SEED_PARTITION_BYTES // sector_bytes
    cluster_sectors = _CLUSTER_BYTES // sector_bytes
    root_sectors = _ROOT_ENTRIES * _ENTRY_BYTES // sector_bytes
    fat_sectors = -(-(sector_count // cluster_sectors + 2) * 3 // 2 // sector_bytes)
    data_sector = 1 + 2 * fat_sectors + root_sectors
    cluster_count = (sector_count - data_sector) // cluster_sectors
    links = [0xF00 | _MEDIA, _END]
    directory = LABEL + struct.pack("<B10xHHHI", _VOLUME_LABEL, 0, _DATE, 0, 0)
    data = bytearray()
    for index, (name, content) in enumerate(sorted(files.items()), 1):
        first = len(links) if content else 0  # an empty file has no cluster
        directory += _entries(name, index, first, len(content))
        clusters = -(-len(content) // _CLUSTER_BYTES)
        links += [*range(len(links) + 1, len(links) + clusters), _END] if clusters else []
        data += content.ljust(clusters * _CLUSTER_BYTES, b"\0")
    if len(links) - 2 > cluster_count or len(directory) > _ROOT_ENTRIES * _ENTRY_BYTES:
        raise ConfigurationError(
            f"the files of a seed have {len(data)} bytes, and its partition has {cluster_count * _CLUSTER_BYTES}"
        )
    serial = blake3(b"".join(name.encode() + b"\0" + files[name] for name in sorted(files))).digest()[:4]
    boot_sector = struct.pack(
        "<3s8sHBHBHHBHHHIIBBB4s11s8s",
        b"\xeb\x3c\x90",
        b"DISKCAST",
        sector_bytes,
        cluster_sectors,
        1,
        2,
        _ROOT_ENTRIES,
        sector_count if sector_count <= 0xFFFF else 0,
        _MEDIA,
        fat_sectors,
        63,
        255,
        0,
        0,
        0x80,
        0,
        0x29,
        serial,
        LABEL,
        b"FAT12   ",
    )
    boot_sector = (boot_sector.ljust(510, b"\0") + b"\x55\xaa").ljust(sector_bytes, b"\0")
    fat = _packed(links).ljust(fat_sectors * sector_bytes, b"\0")
    return boot_sector + 2 * fat + directory.ljust(root_sectors * sector_bytes, b"\0") + bytes(data)


def _packed(links: list[int]) -> bytes:
    """Return entries of 12 bits, two in three bytes."""
    pairs = zip(links[::2], [*links[1::2], 0], strict=False)
    return b"".join((low | high << 12).to_bytes(3, "little") for low, high in pairs)


def _entries(name: str, index: int, cluster: int, size_bytes: int) -> bytes:
    """Return the entry of a file behind that of its long name."""
    short = f"SEED{index:04}   ".encode("ascii")
    checksum = 0
    for byte in short:
        checksum = ((checksum & 1) << 7) + (checksum >> 1) + byte & 0xFF
    pieces = [name[start : start + _LONG_NAME_CHARS] for start in range(0, len(name), _LONG_NAME_CHARS)]
    data = b""
    for number, piece in reversed(list(enumerate(pieces, 1))):
        mark = 0x40 if number == len(pieces) else 0
        units = (piece + "\0" * (len(piece) < _LONG_NAME_CHARS)).encode("utf-16-le").ljust(26, b"\xff")
        data += struct.pack(
            "<B10sBBB12s2x4s", number | mark, units[:10], _LONG_NAME, 0, checksum, units[10:22], units[22:]
        )
    return (
        data
        + short
        + struct.pack("<BBBHHHHHHHI", _ARCHIVE, 0, 0, 0, _DATE, _DATE, 0, 0, _DATE, cluster, size_bytes)
    )
