"""A small disk as an operator would image it, with boot code, a GPT and a filesystem, and a bootability check."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np

from protocol.constants import MIB
from tests.support.network.lab import run
from tests.support.programs.processes import require_program

SECTOR_BYTES: Final = 512
_PROTECTIVE: Final = 0xEE
_GPT_HEADER: Final = struct.Struct("<8sIIII")

FILESYSTEM_START_BYTES: Final = MIB
FILESYSTEM_BYTES: Final = MIB * 3 // 2
DATA_START_BYTES: Final = FILESYSTEM_START_BYTES + FILESYSTEM_BYTES
DISK_BYTES: Final = 5 * MIB
"""Size of the filesystem. The first and last MiB hold the table and its backup; less than three are left for it."""


def make_bootable_disk(path: Path, seed: int) -> bytes:
    """Create the file ``path`` and return its content; disks of two seeds have no data block in common."""
    rng = np.random.default_rng(seed)
    folder = path.with_name(f"{path.name}-files")
    folder.mkdir()
    for name in ("kernel", "settings", "log"):
        (folder / name).write_bytes(rng.bytes(int(rng.integers(20_000, 150_000))))
    filesystem = path.with_name(f"{path.name}-filesystem")
    filesystem.write_bytes(rng.bytes(FILESYSTEM_BYTES))  # old files leave such content in unused blocks
    extended = f"nodiscard,lazy_itable_init=0,hash_seed={_uuid(rng)}"
    mkfs = require_program("mkfs.ext4")
    run(mkfs, "-q", "-O", "^has_journal", "-E", extended, "-U", _uuid(rng), "-d", folder, filesystem)
    data_bytes = DISK_BYTES - MIB - DATA_START_BYTES
    text = b"compressible %d " % seed * 40_000
    data = rng.bytes(700_000) + text[:300_000]
    path.write_bytes(
        rng.bytes(FILESYSTEM_START_BYTES)
        + filesystem.read_bytes()
        + data.ljust(data_bytes, b"\0")
        + rng.bytes(MIB)
    )
    sectors = [DATA_START_BYTES // SECTOR_BYTES, data_bytes // SECTOR_BYTES]
    table = (
        f"label: gpt\nlabel-id: {_uuid(rng)}\nfirst-lba: 34\n"
        f"start={MIB // SECTOR_BYTES}, size={FILESYSTEM_BYTES // SECTOR_BYTES}, type=linux, uuid={_uuid(rng)}\n"
        f"start={sectors[0]}, size={sectors[1]}, type=linux, uuid={_uuid(rng)}\n"
    )
    run(require_program("sfdisk"), "--quiet", "--no-reread", "--wipe", "never", path, text=table)
    content = path.read_bytes()
    assert looks_bootable(content)
    return content


def _uuid(rng: np.random.Generator) -> str:
    text = rng.bytes(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"


def looks_bootable(disk: bytes) -> bool:
    """Return whether a BIOS would run the first sector, or UEFI firmware accept the partition table behind it.

    Stricter than firmware: a GPT counts as soon as an entry of the first sector protects it, even without the boot
    signature of that sector.
    """
    if disk[510:512] == b"\x55\xaa":
        return True
    types = disk[446 + 4 : 510 : 16]
    return _PROTECTIVE in types and _has_gpt_header(disk)


def _has_gpt_header(disk: bytes) -> bool:
    header = disk[SECTOR_BYTES : 2 * SECTOR_BYTES]
    if len(header) < SECTOR_BYTES:
        return False
    signature, _revision, header_bytes, checksum, _reserved = _GPT_HEADER.unpack_from(header)
    if signature != b"EFI PART" or not 92 <= header_bytes <= SECTOR_BYTES:
        return False
    return bool(zlib.crc32(header[:16] + bytes(4) + header[20:header_bytes]) == checksum)
