"""Labels and UUIDs of filesystems, from their superblocks; the bytes are untrusted."""

from __future__ import annotations

import dataclasses
import struct
import uuid
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from protocol.constants import KIB
from protocol.disk.disk_reads import Read
from protocol.disk.filesystem_magic import swap_page_bytes

_LABEL_CHARACTERS_MAX: Final = 256
"""btrfs has the longest labels."""

_NTFS_RECORD_BYTES_MAX: Final = 64 * KIB
_EXFAT_ROOT_BYTES: Final = 4 * KIB
"""Part of the root folder that is searched: formatting writes the label first."""


@dataclasses.dataclass(frozen=True, slots=True)
class FilesystemLabel:
    """Label and UUID of a filesystem, as ``blkid`` shows them; empty if it has none."""

    label: str = ""
    uuid: str = ""


def read_label_untrusted(filesystem: str, read: Read) -> FilesystemLabel:
    """Return label and UUID of ``filesystem``; both are empty if its superblock is damaged."""
    parser = _PARSERS.get(filesystem)
    if parser is None:
        return FilesystemLabel()
    try:
        found = parser(read)
    except (struct.error, IndexError, ValueError):
        return FilesystemLabel()
    return dataclasses.replace(found, label=_printable(found.label))


def _printable(text: str) -> str:
    text = text.partition("\0")[0].strip()[:_LABEL_CHARACTERS_MAX]
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "replace")


def _uuid(data: bytes) -> str:
    return str(uuid.UUID(bytes=data)) if any(data) else ""


def _serial(data: bytes) -> str:
    high, low = struct.unpack("<HH", data)[::-1]
    return f"{high:04X}-{low:04X}"


def _ext(read: Read) -> FilesystemLabel:
    data = read(KIB, KIB)
    return FilesystemLabel(_text(data[0x78:0x88]), _uuid(data[0x68:0x78]))


def _xfs(read: Read) -> FilesystemLabel:
    data = read(0, 512)
    return FilesystemLabel(_text(data[108:120]), _uuid(data[32:48]))


def _btrfs(read: Read) -> FilesystemLabel:
    data = read(64 * KIB, 4 * KIB)
    return FilesystemLabel(_text(data[0x12B:0x22B]), _uuid(data[0x20:0x30]))


def _ntfs(read: Read) -> FilesystemLabel:
    """Read the serial number, and the label from the file record of $Volume."""
    data = read(0, 512)
    serial = f"{struct.unpack_from('<Q', data, 72)[0]:016X}"
    (sector_bytes,) = struct.unpack_from("<H", data, 11)
    cluster_bytes = sector_bytes * (data[13] if data[13] <= 0x80 else 1 << (256 - data[13]))
    (mft_cluster,) = struct.unpack_from("<Q", data, 48)
    size = struct.unpack_from("<b", data, 64)[0]
    record_bytes = size * cluster_bytes if size > 0 else 1 << -size
    if not 512 <= record_bytes <= _NTFS_RECORD_BYTES_MAX or mft_cluster * cluster_bytes >= 1 << 62:
        return FilesystemLabel("", serial)
    record = read(mft_cluster * cluster_bytes + 3 * record_bytes, record_bytes)
    if record[:4] != b"FILE":
        return FilesystemLabel("", serial)
    # The last two bytes of each sector are replaced by a check value; a label doesn't reach that far.
    (offset,) = struct.unpack_from("<H", record, 20)
    while offset + 24 <= len(record):
        kind, length = struct.unpack_from("<II", record, offset)
        if kind == 0x60 and not record[offset + 8]:
            value_bytes, value_offset = struct.unpack_from("<IH", record, offset + 16)
            start = offset + value_offset
            value = record[start : start + min(value_bytes, 2 * _LABEL_CHARACTERS_MAX)]
            return FilesystemLabel(value.decode("utf-16-le", "replace"), serial)
        if kind == 0xFFFFFFFF or length < 16:
            break
        offset += length
    return FilesystemLabel("", serial)


def _fat(read: Read) -> FilesystemLabel:
    data = read(0, 512)
    (sectors_per_fat_16,) = struct.unpack_from("<H", data, 22)
    start = 36 if sectors_per_fat_16 else 64
    label = data[start + 7 : start + 18].decode("cp437").rstrip()
    return FilesystemLabel("" if label == "NO NAME" else label, _serial(data[start + 3 : start + 7]))


def _exfat(read: Read) -> FilesystemLabel:
    data = read(0, 512)
    (heap_sector,) = struct.unpack_from("<I", data, 88)
    (root_cluster,) = struct.unpack_from("<I", data, 96)
    sector_shift, cluster_shift = data[108], data[109]
    serial = _serial(data[100:104])
    if not 9 <= sector_shift <= 12 or cluster_shift > 25 - sector_shift or root_cluster < 2:
        return FilesystemLabel("", serial)
    root = (heap_sector << sector_shift) + (root_cluster - 2 << sector_shift + cluster_shift)
    entries = read(root, _EXFAT_ROOT_BYTES)
    for offset in range(0, len(entries) - 31, 32):
        if entries[offset] == 0x83:
            count = min(entries[offset + 1], 11)
            label = entries[offset + 2 : offset + 2 + 2 * count].decode("utf-16-le", "replace")
            return FilesystemLabel(label, serial)
    return FilesystemLabel("", serial)


def _swap(read: Read) -> FilesystemLabel:
    head = read(0, 64 * KIB)
    if not swap_page_bytes(head):
        return FilesystemLabel()
    return FilesystemLabel(_text(head[KIB + 28 : KIB + 44]), _uuid(head[KIB + 12 : KIB + 28]))


_PARSERS: Final[Mapping[str, Callable[[Read], FilesystemLabel]]] = MappingProxyType(
    {
        "ext4": _ext,
        "xfs": _xfs,
        "btrfs": _btrfs,
        "ntfs": _ntfs,
        "vfat": _fat,
        "exfat": _exfat,
        "swap": _swap,
    }
)
"""One for each of :data:`protocol.disk.filesystem_magic.FILESYSTEMS`."""
