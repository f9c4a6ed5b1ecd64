"""Export of an image to a directory that Clonezilla restores: partclone's images, and dd for unknown content."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, cast

import numpy as np
import zstandard
from numpy.typing import NDArray

from protocol.constants import KIB, MIB
from protocol.disk.disk_layout import layout_of
from protocol.disk.filesystem_magic import swap_page_bytes
from protocol.disk.partition_table import DiskLayout, Partition, TableKind
from protocol.errors import ConfigurationError, StorageError
from protocol.image.block_codec import LEVEL_DEFAULT
from protocol.image.manifest import BlockKind
from protocol.shared.units import format_bytes
from sender.export.partclone_stream import block_bytes_of, partclone_stream
from sender.export.partition_text import dump_text, parted_text
from sender.export.split_output import SplitOutput, create_file
from sender.imaging.image_file import ImageFile
from sender.imaging.verified_blocks import VerifiedBlocks

_DEVICE: Final = "sda"
"""Name of the disk in the directory; Clonezilla asks for the disk to restore it to."""

_CHUNK_BYTES: Final = 4 * MIB
_SECTOR_BYTES: Final = 512
_GPT_SECTORS: Final = 34
_PARTCLONE: Final = {
    "ext4": ("ext4", "EXTFS"),
    "xfs": ("xfs", "XFS"),
    "btrfs": ("btrfs", "BTRFS"),
    "ntfs": ("ntfs", "NTFS"),
    "vfat": ("vfat", "FAT"),
    "exfat": ("exfat", "EXFAT"),
}
"""Clonezilla's and partclone's names of filesystems."""

_DIRECTORY_MODE: Final = 0o750


def export_clonezilla(image: ImageFile, output: Path, on_progress: Callable[[int, int], None]) -> int:
    """Write an image directory of Clonezilla; it appears under its name only once it is complete.

    Each block is checked against its hashes. Free space of known filesystems isn't written.

    Args:
        image: an open image.
        output: the directory, which doesn't exist yet.
        on_progress: called with the bytes done and the total bytes.

    Returns:
        Bytes of all files.

    Raises:
        ConfigurationError: the output exists or can't be created, or Clonezilla can't hold such a disk.
        ImageDamagedError: a block doesn't match its hashes; there is no output.
        StorageError: a disk is full or failed; there is no output.
    """
    layout = _supported_layout(image)
    output = output.absolute()
    if os.path.lexists(output):
        raise ConfigurationError(f"{output} exists: choose another output")
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.mkdir(_DIRECTORY_MODE)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{partial} exists: another process is writing there, or was killed; in that case remove it"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"can't create {output}: {error.strerror}; choose another output") from error
    try:
        _DirectoryWriter(image, layout, partial, on_progress).write()
        _sync(partial)
        partial.rename(output)
        _sync(output.parent)
        return sum(file.stat().st_size for file in output.iterdir())
    except OSError as error:
        raise StorageError(f"{output}: can't write the export: {error.strerror}; check the disk") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _supported_layout(image: ImageFile) -> DiskLayout:
    layout = layout_of(image.manifest.metadata)
    if layout is None or layout.table is TableKind.NONE:
        raise ConfigurationError(
            f"{image.path}: the disk has no partition table, and Clonezilla saves disks with one: export it as raw"
        )
    if layout.sector_bytes != _SECTOR_BYTES:
        raise ConfigurationError(
            f"{image.path}: the disk has sectors of {layout.sector_bytes} bytes, which an export to Clonezilla "
            "doesn't support: export it as raw"
        )
    return layout


class _DirectoryWriter:
    """One directory in progress."""

    def __init__(
        self, image: ImageFile, layout: DiskLayout, path: Path, on_progress: Callable[[int, int], None]
    ) -> None:
        self._manifest = image.manifest
        self._layout = layout
        self._path = path
        self._on_progress = on_progress
        self._read = VerifiedBlocks(image).read_range
        self._done_bytes = 0
        self._total_bytes = sum(part.size_bytes for part in layout.partitions if not part.is_extended)

    def write(self) -> None:
        """Write all files."""
        self._write_table()
        saved, filesystems = [], ["# <Device name>   <File system>   <Size>\n"]
        for part in self._layout.partitions:
            name = f"{_DEVICE}{part.number}"
            if part.is_extended:
                self._put(f"{name}-ebr", self._read(part.start_bytes, _SECTOR_BYTES))
                continue
            size = format_bytes(part.size_bytes)
            filesystems.append(f"/dev/{name} {part.filesystem or 'unknown'} {size}\n")
            if part.filesystem == "swap":
                self._put(f"swappt-{name}.info", self._swap_text(part))
            else:
                saved.append(name)
                self._write_content(part, name)
            self._done_bytes += part.size_bytes
            self._on_progress(self._done_bytes, self._total_bytes)
        self._put("dev-fs.list", "".join(filesystems).encode())
        self._put("parts", (" ".join(saved) + "\n").encode())
        self._put("disk", f"{_DEVICE}\n".encode())
        self._put("clonezilla-img", b"This image was exported by diskcast.\n")

    def _write_table(self) -> None:
        raw_bytes = self._manifest.raw_bytes
        dump = dump_text(self._layout, self._read, raw_bytes, _DEVICE)
        self._put(f"{_DEVICE}-pt.sf", dump.encode())
        self._put(f"{_DEVICE}-pt.parted", parted_text(self._layout, raw_bytes, _DEVICE).encode())
        self._put(f"{_DEVICE}-mbr", self._read(0, _SECTOR_BYTES))
        if self._layout.table is TableKind.GPT:
            self._put(f"{_DEVICE}-gpt-1st", self._read(0, _GPT_SECTORS * _SECTOR_BYTES))
            second_bytes = (_GPT_SECTORS - 1) * _SECTOR_BYTES
            self._put(f"{_DEVICE}-gpt-2nd", self._read(raw_bytes - second_bytes, second_bytes))
            return
        first_bytes = min(part.start_bytes for part in self._layout.partitions)
        hidden = self._read(_SECTOR_BYTES, min(first_bytes, 64 * MIB) - _SECTOR_BYTES)
        self._put(f"{_DEVICE}-hidden-data-after-mbr", hidden)

    def _swap_text(self, part: Partition) -> bytes:
        head = self._read(part.start_bytes, 64 * KIB)
        identity, label = (head[1036:1052], head[1052:1068]) if swap_page_bytes(head) else (bytes(16), b"")
        name = str(uuid.UUID(bytes=identity)) if any(identity) else ""
        text = label.split(b"\0", 1)[0].decode("ascii", "replace")
        # Clonezilla's shell scripts execute this file: a label must not become a command.
        safe = "".join(
            letter for letter in text if letter.isascii() and (letter.isalnum() or letter in " -_.")
        )
        return f'UUID="{name}"\nLABEL="{safe}"\n'.encode()

    def _write_content(self, part: Partition, name: str) -> None:
        words = _PARTCLONE.get(part.filesystem)
        if words is None:
            self._write_stream(f"{name}.dd-img", self._raw_stream(part))
            return
        stream = partclone_stream(
            words[1],
            part.size_bytes,
            self._used_ranges(part),
            lambda offset, length: self._read(part.start_bytes + offset, length),
        )
        self._write_stream(f"{name}.{words[0]}-ptcl-img.zst", stream)

    def _used_ranges(self, part: Partition) -> NDArray[np.int64]:
        """Return the ranges of a partition that aren't free space, in whole blocks of partclone's."""
        unit, block_bytes = block_bytes_of(part.size_bytes), self._manifest.block_bytes
        first, stop = part.start_bytes // block_bytes, -(-part.stop_bytes // block_bytes)
        is_used = (self._manifest.kind[first:stop] != BlockKind.UNUSED).view(np.uint8)
        edges = np.flatnonzero(np.diff(is_used, prepend=np.uint8(0), append=np.uint8(0)))
        ranges = (edges.reshape(-1, 2) + first) * block_bytes - part.start_bytes
        ranges = np.clip(ranges, 0, part.size_bytes)
        return np.stack([ranges[:, 0] // unit * unit, -(-ranges[:, 1] // unit) * unit], axis=1)

    def _raw_stream(self, part: Partition) -> Iterator[bytes]:
        for offset in range(0, part.size_bytes, _CHUNK_BYTES):
            yield self._read(part.start_bytes + offset, min(_CHUNK_BYTES, part.size_bytes - offset))

    def _write_stream(self, name: str, stream: Iterator[bytes]) -> None:
        """Write a stream, compressed and in pieces."""
        compressor = zstandard.ZstdCompressor(level=LEVEL_DEFAULT, threads=-1, write_checksum=True)
        with (
            contextlib.closing(SplitOutput(self._path, name)) as pieces,
            compressor.stream_writer(cast("IO[bytes]", pieces), closefd=False) as output,
        ):
            for data in stream:
                output.write(data)

    def _put(self, name: str, data: bytes) -> None:
        with create_file(self._path / name) as file:
            file.write(data)
            os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
