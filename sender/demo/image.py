"""Make the demo's disk image: a partition table, a filesystem with real files of this machine, and holes.

Needs no root. This module writes the partition table. ``mke2fs -d`` makes the filesystem if e2fsprogs is installed;
otherwise the partition holds a tar stream of the same files.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import struct
import subprocess
import sysconfig
import tarfile
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from protocol.constants import MIB
from protocol.errors import ImageDamagedError, SourceError, StorageError
from protocol.shared.units import format_bytes

SECTOR_BYTES = 512
PARTITION_START_BYTES = MIB
"""Start of the first partition in every partitioning tool: aligned for any disk."""
IMAGE_BYTES_MIN = 16 * MIB
CONTENT_FRACTION = 0.3
"""Content per image byte: a golden image is mostly free space, and mke2fs needs some for itself."""
FILE_BYTES_MAX = 16 * MIB
"""Larger files are skipped: a system disk holds many files of all sizes, not one huge file."""
_FILESYSTEM_BLOCK_BYTES = 4096
"""Space that a tiny file takes in ext4; many of them must not outgrow the filesystem."""

LINUX_FILESYSTEM_TYPE = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
"""Linux filesystem data (Discoverable Partitions Specification)."""

_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
"""UEFI 2.10 section 5.3.2: signature, revision, header size, header CRC, reserved, this header's sector, the other
header's, first and last usable sector, disk id, first sector of the entries, their count, their size, their CRC."""
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
"""UEFI 2.10 section 5.3.3: type, id, first sector, last sector (inclusive), attributes, UTF-16 name."""
_GPT_ENTRY_COUNT = 128
_GPT_ENTRIES_SECTORS = _GPT_ENTRY_COUNT * _GPT_ENTRY.size // SECTOR_BYTES


@dataclasses.dataclass(frozen=True, slots=True)
class DemoImage:
    """A disk image and its content."""

    path: Path
    raw_bytes: int
    filesystem: str
    """``ext4``, or ``tar stream`` where no mke2fs was found."""
    file_count: int
    content_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class DemoPartition:
    """One entry of a GUID partition table, in bytes."""

    name: str
    start_bytes: int
    size_bytes: int


def find_mke2fs() -> str | None:
    """Return the path of mke2fs, found in the system directories too; None if it isn't installed."""
    return shutil.which("mke2fs", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def default_file_roots() -> list[Path]:
    """Return directories of this machine that hold files for the image."""
    return [Path(sysconfig.get_path("stdlib")), Path("/usr/share")]


def make_demo_image(
    path: Path, raw_bytes: int, scratch: Path, *, mke2fs: str | None, file_roots: Sequence[Path] | None = None
) -> DemoImage:
    """Make a disk image of ``raw_bytes`` (rounded down to a MiB) at ``path``.

    Takes about two seconds for 512 MiB.

    Args:
        path: the image.
        raw_bytes: size of the disk.
        scratch: a directory for the staged files, which are removed again.
        mke2fs: path of mke2fs; None for a tar stream instead of a filesystem.
        file_roots: directories whose files are copied; None for :func:`default_file_roots`.

    Raises:
        SourceError: mke2fs failed, or there are no readable files to fill the image with.
        StorageError: the image can't be written.
    """
    try:
        return _make_demo_image(path, raw_bytes, scratch, mke2fs, file_roots or default_file_roots())
    except OSError as error:
        raise StorageError(
            f"can't make the demo's image {path}: {error}; name another directory with --directory"
        ) from error


def _make_demo_image(
    path: Path, raw_bytes: int, scratch: Path, mke2fs: str | None, file_roots: Sequence[Path]
) -> DemoImage:
    raw_bytes -= raw_bytes % MIB
    assert raw_bytes >= IMAGE_BYTES_MIN, raw_bytes
    size_bytes = raw_bytes - 2 * PARTITION_START_BYTES
    partition = DemoPartition("diskcast demo", PARTITION_START_BYTES, size_bytes)
    with path.open("wb") as image:
        image.truncate(raw_bytes)
        write_partition_table(image.fileno(), raw_bytes, partition)
    files = list(_choose_files(file_roots, int(raw_bytes * CONTENT_FRACTION)))
    if not files:
        raise SourceError(
            f"can't fill the demo's image: no readable files of at most {format_bytes(FILE_BYTES_MAX)} below "
            f"{' and '.join(map(str, file_roots))}; run the demo as a user that may read them"
        )
    if mke2fs is None:
        _write_tar(path, partition, files)
    else:
        _make_ext4(mke2fs, path, partition, files, scratch)
    content_bytes = sum(size for _, size in files)
    return DemoImage(path, raw_bytes, "ext4" if mke2fs else "tar stream", len(files), content_bytes)


def write_partition_table(fd: int, raw_bytes: int, partition: DemoPartition) -> None:
    """Write a GUID partition table with one partition, a protective MBR, and the backup at the end of the disk."""
    sectors = raw_bytes // SECTOR_BYTES
    entry = _GPT_ENTRY.pack(
        LINUX_FILESYSTEM_TYPE.bytes_le,
        uuid.uuid4().bytes_le,
        partition.start_bytes // SECTOR_BYTES,
        (partition.start_bytes + partition.size_bytes) // SECTOR_BYTES - 1,
        0,
        partition.name.encode("utf-16-le"),
    )
    entries = entry.ljust(_GPT_ENTRY_COUNT * _GPT_ENTRY.size, b"\0")
    disk_id = uuid.uuid4().bytes_le
    backup_entries_sector = sectors - 1 - _GPT_ENTRIES_SECTORS
    primary = _gpt_header(sectors, disk_id, entries, at_sector=1, entries_sector=2)
    backup = _gpt_header(
        sectors, disk_id, entries, at_sector=sectors - 1, entries_sector=backup_entries_sector
    )
    os.pwrite(fd, _protective_mbr(sectors), 0)
    os.pwrite(fd, primary, SECTOR_BYTES)
    os.pwrite(fd, entries, 2 * SECTOR_BYTES)
    os.pwrite(fd, entries, backup_entries_sector * SECTOR_BYTES)
    os.pwrite(fd, backup, (sectors - 1) * SECTOR_BYTES)


def read_partition_table(path: Path) -> list[DemoPartition]:
    """Read the partitions of a disk or image, and check both copies of its table.

    Raises:
        ImageDamagedError: a copy is missing or damaged, or they differ.
    """
    with path.open("rb") as disk:
        disk_bytes = disk.seek(0, os.SEEK_END)
        primary, entries = _read_gpt(disk.fileno(), path, SECTOR_BYTES)
        backup, backup_entries = _read_gpt(disk.fileno(), path, disk_bytes - SECTOR_BYTES)
    if (
        entries != backup_entries
        or primary[9] != backup[9]
        or (primary[5], primary[6]) != (backup[6], backup[5])
    ):
        raise ImageDamagedError(f"{path}: the partition table and its backup differ; write the disk again")
    return [
        DemoPartition(
            name.decode("utf-16-le").rstrip("\0"), first * SECTOR_BYTES, (last + 1 - first) * SECTOR_BYTES
        )
        for type_id, _, first, last, _, name in _GPT_ENTRY.iter_unpack(entries)
        if any(type_id)
    ]


def _read_gpt(fd: int, path: Path, offset_bytes: int) -> tuple[tuple[object, ...], bytes]:
    sector = os.pread(fd, SECTOR_BYTES, offset_bytes)
    header = _GPT_HEADER.unpack_from(sector) if len(sector) == SECTOR_BYTES else (b"",)
    if header[0] != b"EFI PART":
        raise ImageDamagedError(f"{path}: no partition table at byte {offset_bytes}; write the disk again")
    header_without_crc = sector[:16] + bytes(4) + sector[20 : _GPT_HEADER.size]
    entries = os.pread(fd, _GPT_ENTRY_COUNT * _GPT_ENTRY.size, header[10] * SECTOR_BYTES)
    if header[3] != zlib.crc32(header_without_crc) or header[13] != zlib.crc32(entries):
        raise ImageDamagedError(
            f"{path}: the partition table at byte {offset_bytes} is damaged; write the disk again"
        )
    return header, entries


def _gpt_header(
    sectors: int, disk_id: bytes, entries: bytes, *, at_sector: int, entries_sector: int
) -> bytes:
    first_usable, last_usable = 2 + _GPT_ENTRIES_SECTORS, sectors - 2 - _GPT_ENTRIES_SECTORS

    def pack(crc: int) -> bytes:
        return _GPT_HEADER.pack(
            b"EFI PART",
            0x00010000,
            _GPT_HEADER.size,
            crc,
            0,
            at_sector,
            sectors - at_sector,
            first_usable,
            last_usable,
            disk_id,
            entries_sector,
            _GPT_ENTRY_COUNT,
            _GPT_ENTRY.size,
            zlib.crc32(entries),
        )

    return pack(zlib.crc32(pack(0))).ljust(SECTOR_BYTES, b"\0")


def _protective_mbr(sectors: int) -> bytes:
    """Return an MBR with one partition of type 0xEE over the whole disk, which old tools leave alone (UEFI 5.2.3)."""
    entry = struct.pack(
        "<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF)
    )
    return bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa"


def _choose_files(roots: Sequence[Path], budget_bytes: int) -> Iterator[tuple[Path, int]]:
    """Yield readable regular files with their sizes, within an equal share of the budget for each root.

    The share that a root doesn't use goes to the roots after it.
    """
    left_bytes = budget_bytes
    for index, root in enumerate(roots):
        share_bytes = left_bytes // (len(roots) - index)
        for directory, directories, names in os.walk(root):
            directories.sort()
            for name in sorted(names):
                path = Path(directory, name)
                size = _readable_size(path)
                cost = -(-size // _FILESYSTEM_BLOCK_BYTES) * _FILESYSTEM_BLOCK_BYTES + SECTOR_BYTES
                if 0 < size <= FILE_BYTES_MAX and cost <= share_bytes:
                    share_bytes -= cost
                    left_bytes -= cost
                    yield path, size
            if share_bytes < MIB // 4:
                break


def _readable_size(path: Path) -> int:
    """Return the size of a regular file that this user can read, otherwise 0."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK) else 0


def _make_ext4(
    mke2fs: str, path: Path, partition: DemoPartition, files: list[tuple[Path, int]], scratch: Path
) -> None:
    stage = scratch / "stage"
    for source, _ in files:
        staged = stage / source.relative_to("/")
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, staged)
    command = [mke2fs, "-q", "-F", "-t", "ext4", "-L", "diskcast-demo", "-m", "0", "-d", str(stage)]
    command += ["-E", f"offset={partition.start_bytes}", str(path), f"{partition.size_bytes // 1024}k"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(stage)
    if done.returncode != 0:
        raise SourceError(
            f"mke2fs can't make the demo's filesystem: {done.stderr.strip()}; try another --size"
        )


def _write_tar(path: Path, partition: DemoPartition, files: list[tuple[Path, int]]) -> None:
    with path.open("r+b") as image:
        image.seek(partition.start_bytes)
        with tarfile.open(fileobj=image, mode="w|") as archive:
            for source, _ in files:
                archive.add(source, recursive=False)
        assert image.tell() <= partition.start_bytes + partition.size_bytes
