"""Partclone images built byte by byte: formats, checksums and lies that the installed partclone doesn't write."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np

from tests.support.network.lab import run

HEADER_BYTES = {1: 4160, 2: 110}


def build_partclone(
    blocks: list[bytes],
    *,
    version: int = 2,
    checksum: bool = True,
    blocks_per_checksum: int = 4,
    restarts: bool = True,
    bitmap_mode: int = 1,
    device_bytes: int | None = None,
    used_block_count: int | None = None,
) -> bytes:
    """Return an image of ``blocks``, of which the empty ones are absent; the others have the same size."""
    block_bytes = max(map(len, blocks))
    used = [block for block in blocks if block]
    bits = np.array([bool(block) for block in blocks])
    packed = np.packbits(bits, bitorder="little").tobytes()
    device = len(blocks) * block_bytes if device_bytes is None else device_bytes
    used_count = len(used) if used_block_count is None else used_block_count
    if version == 1:
        header = struct.pack(
            "<15s15s4s2xIQQQ4096x", b"partclone-image", b"EXTFS", b"0001", block_bytes, device, len(blocks), used_count
        )  # fmt: skip
        return header + bits.astype(np.uint8).tobytes() + b"BiTmAgIc" + _data_v1(used)
    header = struct.pack(
        "<16s14s4sH16sQQQQIIHHHHIBB", b"partclone-image", b"0.3.23", b"0002", 0xC0DE, b"EXTFS", device, len(blocks),
        used_count, used_count, block_bytes, 18, 2, 64, 0x20 if checksum else 0, 4 if checksum else 0,
        blocks_per_checksum if checksum else 0, restarts, bitmap_mode,
    )  # fmt: skip
    bitmap = {0: b"", 1: packed, 8: bits.astype(np.uint8).tobytes()}[bitmap_mode]
    bitmap_crc = crc(packed) if bitmap_mode else b""
    data = _data_v2(used, blocks_per_checksum, restarts=restarts) if checksum else b"".join(used)
    return header + crc(header) + bitmap + bitmap_crc + data


def crc(data: bytes, before: int = 0) -> bytes:
    """Return partclone's CRC32, which lacks the last inversion."""
    return (zlib.crc32(data, before) ^ 0xFFFFFFFF).to_bytes(4, "little")


def _data_v1(used: list[bytes]) -> bytes:
    state, data = 0, []
    for block in used:
        state = zlib.crc32(block[:1] * len(block), state)
        data.append(block + (state ^ 0xFFFFFFFF).to_bytes(4, "little"))
    return b"".join(data)


def _data_v2(used: list[bytes], blocks_per_checksum: int, *, restarts: bool) -> bytes:
    state, data = 0, []
    for start in range(0, len(used), blocks_per_checksum):
        strip = b"".join(used[start : start + blocks_per_checksum])
        state = zlib.crc32(strip, 0 if restarts else state)
        data.append(strip + (state ^ 0xFFFFFFFF).to_bytes(4, "little"))
    return b"".join(data)


def repair_header(data: bytes) -> bytes:
    """Make the header's checksum right again."""
    size = HEADER_BYTES[2] - 4
    return data[:size] + crc(data[:size]) + data[size + 4 :] if len(data) >= size + 4 else data


class ShortReads(io.RawIOBase):
    """A stream whose reads return less than asked, as pipes do."""

    def __init__(self, data: bytes, step: int = 1000) -> None:
        super().__init__()
        self._data = memoryview(data)
        self._step = step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), self._step, len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def clone(filesystem: Path, output: Path, program: str, *options: str) -> None:
    """Clone a filesystem by partclone itself."""
    run(program, "-c", "-s", filesystem, "-O", output, "-L", "/dev/null", "-q", *options)


def partclone_restores(image: Path, target: Path, size_bytes: int) -> bool:
    """Return whether partclone itself restores ``image`` onto ``target``."""
    with target.open("wb") as file:
        file.truncate(size_bytes)
    done = subprocess.run(
        ["partclone.restore", "-C", "-s", image, "-O", target, "-L", "/dev/null", "-q"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0
