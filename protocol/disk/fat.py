r"""FAT12, FAT16 and FAT32 as untrusted bytes: the layout, and files by their path.

Finding a boot loader needs neither a driver nor a code page: long names are UTF-16, and the names that firmware looks
for are ASCII. The structures are those of Microsoft's FAT specification 1.03.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Iterator
from typing import Final

from protocol.constants import MIB
from protocol.disk.disk_reads import Read

_ENTRY_BYTES: Final = 32
_DIRECTORY_BYTES_MAX: Final = 2 * MIB
"""Largest directory by the specification, 65,536 entries; also the end of a chain of clusters that is a loop."""

_LONG_NAME_PARTS_MAX: Final = 20
"""Entries of a long name of 255 characters, 13 in each."""

_LONG_NAME_CHARS: Final = (slice(1, 11), slice(14, 26), slice(28, 32))
_FREE, _END = 0xE5, 0x00
_LONG_NAME_MARK: Final = 0x0F


class FatError(Exception):
    """A FAT that is damaged or has unsupported features; the message is the reason."""


class _Attribute(enum.IntFlag):
    """Bits of an entry's attributes."""

    VOLUME_LABEL = 0x08
    DIRECTORY = 0x10


@dataclasses.dataclass(frozen=True, slots=True)
class FatGeometry:
    """The layout of a FAT filesystem."""

    size_bytes: int
    fat_offset: int
    fat_bytes: int
    fat_count: int
    root_offset: int
    """Offset of the root directory of FAT12 and FAT16, between the tables and the clusters."""
    data_offset: int
    cluster_bytes: int
    cluster_count: int
    entry_bits: int
    """12, 16 or 32."""
    root_cluster: int
    """First cluster of FAT32's root directory; otherwise 0."""


def fat_geometry_untrusted(read: Read) -> FatGeometry:
    """Parse the boot sector (pages 9 to 17 of the specification).

    Raises:
        FatError: it is damaged, or has unsupported features.
    """
    damaged = FatError("its superblock is damaged")
    data = read(0, 512)
    if len(data) < 48:
        raise damaged
    sector_bytes, cluster_sectors, reserved, fat_count, root_entries, sectors = struct.unpack_from(
        "<HBHBHH", data, 11
    )
    (fat_sectors,) = struct.unpack_from("<H", data, 22)
    root_cluster = 0
    if sector_bytes not in (512, 1024, 2048, 4096) or cluster_sectors.bit_count() != 1 or not fat_count:
        raise damaged
    wide = fat_sectors == 0  # FAT32
    if wide:
        fat_sectors, flags, _, root_cluster = struct.unpack_from("<IHHI", data, 36)
        if flags & 0x80:
            raise FatError("only one of its allocation tables is in use")
    if not sectors:
        (sectors,) = struct.unpack_from("<I", data, 32)
    root_sector = reserved + fat_count * fat_sectors
    data_sector = root_sector + -(-root_entries * _ENTRY_BYTES // sector_bytes)
    cluster_count = (sectors - data_sector) // cluster_sectors
    entry_bits = 32 if wide else 12 if cluster_count < 4085 else 16
    if cluster_count < 1 or (cluster_count + 2) * entry_bits > fat_sectors * sector_bytes * 8:
        raise damaged
    return FatGeometry(
        sectors * sector_bytes,
        reserved * sector_bytes,
        fat_sectors * sector_bytes,
        fat_count,
        root_sector * sector_bytes,
        data_sector * sector_bytes,
        cluster_sectors * sector_bytes,
        cluster_count,
        entry_bits,
        root_cluster,
    )


def has_fat_file_untrusted(read: Read, path: str) -> bool:
    r"""Return whether the filesystem has a file at ``path``, such as ``\EFI\BOOT\BOOTX64.EFI``, in any letter case.

    Reads the directories on the way, at most 2 MiB of each.

    Raises:
        FatError: the filesystem is damaged, or has unsupported features.
    """
    fat = fat_geometry_untrusted(read)
    names = [name.casefold() for name in path.strip("\\").split("\\")]
    pieces = _root(read, fat)
    for depth, name in enumerate(names):
        wanted = _Attribute.DIRECTORY if depth < len(names) - 1 else _Attribute(0)
        found = next(
            (
                entry
                for entry in _entries(pieces, fat.entry_bits)
                if name in entry.names and entry.attributes & _Attribute.DIRECTORY == wanted
            ),
            None,
        )
        if found is None:
            return False
        pieces = _clusters(read, fat, found.first_cluster)
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A directory entry with its names in lower case: the short one and, if there is one, the long one."""

    names: tuple[str, ...]
    attributes: int
    first_cluster: int


def _root(read: Read, fat: FatGeometry) -> Iterator[bytes]:
    if fat.root_cluster:
        return _clusters(read, fat, fat.root_cluster)
    return iter((read(fat.root_offset, min(fat.data_offset - fat.root_offset, _DIRECTORY_BYTES_MAX)),))


def _clusters(read: Read, fat: FatGeometry, cluster: int) -> Iterator[bytes]:
    """Yield the clusters of a chain, at most as many as a directory can have."""
    for _ in range(max(1, _DIRECTORY_BYTES_MAX // fat.cluster_bytes)):
        if not 2 <= cluster < fat.cluster_count + 2:  # the end of the chain, or a damaged one
            return
        offset = fat.data_offset + (cluster - 2) * fat.cluster_bytes
        yield read(offset, min(fat.cluster_bytes, _DIRECTORY_BYTES_MAX))
        cluster = _next_cluster(read, fat, cluster)


def _next_cluster(read: Read, fat: FatGeometry, cluster: int) -> int:
    bit = cluster * fat.entry_bits
    data = read(fat.fat_offset + bit // 8, 4)
    # A FAT12 entry starts in the middle of a byte; FAT32's highest bits are reserved.
    return int.from_bytes(data, "little") >> bit % 8 & ((1 << min(28, fat.entry_bits)) - 1)


def _entries(pieces: Iterator[bytes], entry_bits: int) -> Iterator[_Entry]:
    """Yield the files and directories in a directory's content."""
    long_name: list[bytes] = []
    for piece in pieces:
        for offset in range(0, len(piece) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
            entry = piece[offset : offset + _ENTRY_BYTES]
            if entry[0] == _END:
                return
            if entry[11] & 0x3F == _LONG_NAME_MARK and entry[0] != _FREE:
                # The last part comes first, marked as such.
                long_name = [entry] if entry[0] & 0x40 else [*long_name[-_LONG_NAME_PARTS_MAX:], entry]
                continue
            if entry[0] != _FREE and not entry[11] & _Attribute.VOLUME_LABEL:
                high, low = struct.unpack_from("<H4xH", entry, 20)
                # OS/2 kept extended attributes in the high half on FAT12 and FAT16.
                cluster = high << 16 | low if entry_bits == 32 else low
                yield _Entry(_names(entry, long_name), entry[11], cluster)
            long_name = []


def _names(entry: bytes, long_name: list[bytes]) -> tuple[str, ...]:
    base, extension = (part.decode("ascii", "replace").rstrip() for part in (entry[:8], entry[8:11]))
    short = f"{base}.{extension}" if extension else base
    names = [short.casefold()]
    checksum = 0
    for byte in entry[:11]:
        checksum = ((checksum >> 1 | checksum << 7) + byte) & 0xFF
    numbers = [part[0] & 0x3F for part in long_name]
    # Parts that don't belong to this entry are leftovers of a program that knew no long names.
    if numbers == list(range(len(numbers), 0, -1)) and all(part[13] == checksum for part in long_name):
        encoded = b"".join(part[chars] for part in reversed(long_name) for chars in _LONG_NAME_CHARS)
        names.append(encoded.decode("utf-16-le", "replace").partition("\0")[0].casefold())
    return tuple(filter(None, names))
