"""Files in the root of an exFAT volume, written, deleted and read back without a driver, by the specification."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

_FILE, _STREAM, _NAME, _BITMAP = 0x85, 0xC0, 0xC1, 0x81
_IN_USE = 0x80
_CONTIGUOUS = 0x03


@dataclasses.dataclass(frozen=True)
class _Volume:
    data: bytearray
    cluster_bytes: int
    heap_offset: int
    cluster_count: int
    root_offset: int
    bitmap_offset: int

    def offset_of(self, cluster: int) -> int:
        return self.heap_offset + (cluster - 2) * self.cluster_bytes


def _opened(data: bytearray) -> _Volume:
    heap_sector, cluster_count, root = struct.unpack_from("<III", data, 88)
    sector_bytes = 1 << data[108]
    cluster_bytes = sector_bytes << data[109]
    heap_offset = heap_sector * sector_bytes
    root_offset = heap_offset + (root - 2) * cluster_bytes
    bitmap_cluster = next(
        struct.unpack_from("<I", data, offset + 20)[0]
        for offset in range(root_offset, root_offset + cluster_bytes, 32)
        if data[offset] == _BITMAP
    )
    bitmap_offset = heap_offset + (bitmap_cluster - 2) * cluster_bytes
    return _Volume(data, cluster_bytes, heap_offset, cluster_count, root_offset, bitmap_offset)


def _mark(volume: _Volume, first: int, count: int, *, used: bool) -> None:
    for index in range(first - 2, first - 2 + count):
        octet, bit = volume.bitmap_offset + index // 8, 1 << index % 8
        volume.data[octet] = volume.data[octet] | bit if used else volume.data[octet] & ~bit


def _free_run(volume: _Volume, count: int) -> int:
    run = 0
    for index in range(volume.cluster_count):
        used = volume.data[volume.bitmap_offset + index // 8] >> index % 8 & 1
        run = 0 if used else run + 1
        if run == count:
            return index - count + 3
    raise AssertionError("the volume is full")


def _checksum(entries: bytes) -> int:
    value = 0
    for index, octet in enumerate(entries):
        if index not in (2, 3):
            value = ((value << 15 | value >> 1) + octet) & 0xFFFF
    return value


def _name_hash(name: str) -> int:
    value = 0
    for octet in name.upper().encode("utf-16-le"):
        value = ((value << 15 | value >> 1) + octet) & 0xFFFF
    return value


def write_files(path: Path, files: dict[str, bytes]) -> None:
    """Add files, with names of at most 15 letters, to the root."""
    volume = _opened(bytearray(path.read_bytes()))
    for name, content in files.items():
        count = -(-len(content) // volume.cluster_bytes)
        first = _free_run(volume, count)
        _mark(volume, first, count, used=True)
        offset = volume.offset_of(first)
        volume.data[offset : offset + len(content)] = content
        stamp = 0x21 << 16
        entries = bytearray(
            struct.pack("<BBHHHIII12x", _FILE, 2, 0, 0x20, 0, stamp, stamp, stamp)
            + struct.pack(
                "<BBBBHHQIIQ", _STREAM, _CONTIGUOUS, 0, len(name), _name_hash(name), 0, len(content), 0, first,
                len(content),
            )
            + struct.pack("<BB30s", _NAME, 0, name.encode("utf-16-le"))
        )  # fmt: skip
        struct.pack_into("<H", entries, 2, _checksum(entries))
        at = next(
            offset
            for offset in range(volume.root_offset, volume.root_offset + volume.cluster_bytes, 32)
            if volume.data[offset] == 0
        )
        volume.data[at : at + len(entries)] = entries
    path.write_bytes(volume.data)


def delete_files(path: Path, names: set[str]) -> None:
    """Delete files; their content stays behind as garbage."""
    volume = _opened(bytearray(path.read_bytes()))
    for offset, name, first, length in _files(volume):
        if name in names:
            for entry in range(3):
                volume.data[offset + 32 * entry] &= ~_IN_USE
            _mark(volume, first, -(-length // volume.cluster_bytes), used=False)
    path.write_bytes(volume.data)


def read_files(data: bytes) -> dict[str, bytes]:
    """Return all files in the root."""
    volume = _opened(bytearray(data))
    found = {}
    for _, name, first, length in _files(volume):
        start = volume.offset_of(first)
        found[name] = bytes(volume.data[start : start + length])
    return found


def _files(volume: _Volume) -> list[tuple[int, str, int, int]]:
    """Yield the entry offset, name, first cluster and length of each file."""
    found = []
    for offset in range(volume.root_offset, volume.root_offset + volume.cluster_bytes, 32):
        if volume.data[offset] == _FILE:
            first, length = struct.unpack_from("<IQ", volume.data, offset + 32 + 20)
            name_length = volume.data[offset + 32 + 3]
            name = bytes(volume.data[offset + 66 : offset + 66 + 2 * name_length]).decode("utf-16-le")
            found.append((offset, name, first, length))
    return found
