"""Conversion of partclone's images into a spool: directories of Clonezilla and FOG, and single files."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.errors import SourceError
from protocol.image.provenance import PROVENANCE_TEXT_BYTES_MAX, Provenance, SourceChecksums
from sender.imaging.foreign.clonezilla import describe_clonezilla_untrusted
from sender.imaging.foreign.decompression import open_stream
from sender.imaging.foreign.disk_assembly import assemble_disk, joined_ranges, write_filesystem
from sender.imaging.foreign.fog import describe_fog_untrusted
from sender.imaging.foreign.image_directory import ImageDirectory
from sender.imaging.foreign.partclone_format import MAGIC, ChecksumMode
from sender.imaging.foreign.partclone_reader import ByteStream, PartcloneReader
from sender.imaging.foreign.sniff import ForeignFormat
from sender.imaging.foreign.spool import Spool

Converted = tuple[Provenance, NDArray[np.int64]]
"""The origin, and the ranges of the disk in bytes that no filesystem uses: ``int64[n, 2]``, half-open, ascending."""

_DESCRIBE = {
    ForeignFormat.CLONEZILLA: describe_clonezilla_untrusted,
    ForeignFormat.FOG: describe_fog_untrusted,
}


def convert_directory(
    path: Path,
    kind: ForeignFormat,
    spool: Spool,
    on_progress: Callable[[int, int], None],
    *,
    allow_unsandboxed: bool,
) -> Converted:
    """Write the disk of an image directory into the spool.

    Args:
        path: the directory.
        kind: ``CLONEZILLA`` or ``FOG``.
        spool: an empty spool.
        on_progress: called with the bytes done and the total bytes.
        allow_unsandboxed: see :class:`sender.imaging.foreign.open_source.ImportLimits`.

    Raises:
        DiskcastError: as :func:`sender.imaging.foreign.open_source.open_foreign`.
    """
    with ImageDirectory(path) as directory:
        disk = _DESCRIBE[kind](directory)
        stream = functools.partial(open_directory_stream, directory, allow_unsandboxed=allow_unsandboxed)
        assembled = assemble_disk(disk, spool, stream, on_progress)
    details = list(assembled.writers)
    if assembled.unchecked and assembled.unchecked != tuple(content.number for content in disk.contents):
        numbers = ", ".join(map(str, assembled.unchecked))
        details.append(f"no checksums for partition {numbers}")
    return _provenance(kind, assembled.checksums, details), assembled.unused


@contextlib.contextmanager
def open_directory_stream(
    directory: ImageDirectory, names: tuple[str, ...], *, allow_unsandboxed: bool = False
) -> Iterator[ByteStream]:
    """Open files of a directory as one stream; errors as :func:`open_stream` and ``ImageDirectory.open``."""
    with directory.opened(names) as fds:
        shown = [f"{directory.path}/{name}" for name in names]
        with open_stream(fds, shown, allow_unsandboxed=allow_unsandboxed) as stream:
            yield stream


def holds_partclone(path: Path, *, allow_unsandboxed: bool) -> bool:
    """Return whether a compressed file holds a partclone image rather than a disk; errors as :func:`open_stream`."""
    with _file_stream(path, allow_unsandboxed=allow_unsandboxed) as stream:
        start = bytearray(len(MAGIC))
        position = 0
        while position < len(start) and (count := stream.readinto(memoryview(start)[position:])):
            position += count
        return start == MAGIC


@contextlib.contextmanager
def _file_stream(path: Path, *, allow_unsandboxed: bool) -> Iterator[ByteStream]:
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise SourceError(f"{path}: can't open the source: {error.strerror}") from error
    with (
        file,
        open_stream((file.fileno(),), (str(path),), allow_unsandboxed=allow_unsandboxed) as stream,
    ):
        yield stream


def convert_partclone_file(
    path: Path, spool: Spool, on_progress: Callable[[int, int], None], *, allow_unsandboxed: bool
) -> Converted:
    """Write the filesystem of one partclone image into the spool; arguments as :func:`convert_directory`."""
    with _file_stream(path, allow_unsandboxed=allow_unsandboxed) as stream:
        reader = PartcloneReader(stream, str(path), spool.limit_bytes)
        device_bytes = reader.header.device_bytes
        spool.set_size(device_bytes)
        unused = write_filesystem(reader, spool, 0, lambda done_bytes: on_progress(done_bytes, device_bytes))
    is_checked = reader.header.checksum is ChecksumMode.CRC32
    checksums = SourceChecksums.VERIFIED if is_checked else SourceChecksums.NONE
    writer = [f"partclone {reader.header.tool_version}"] if reader.header.tool_version else []
    return _provenance(ForeignFormat.PARTCLONE, checksums, writer), joined_ranges(unused)


def _provenance(kind: ForeignFormat, checksums: SourceChecksums, details: list[str]) -> Provenance:
    text = "; ".join(details).encode()[:PROVENANCE_TEXT_BYTES_MAX].decode(errors="ignore")
    return Provenance(kind.value, checksums, "diskcast", importlib.metadata.version("diskcast"), text)
