"""One way for all formats: a foreign image becomes a spool, and ``pack`` reads the spool like any raw disk.

Detection of used blocks, holes and determinism are therefore those of raw disks.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ForeignImageError
from protocol.image.provenance import Provenance
from protocol.packing.source import Source
from sender.imaging.foreign.compressed_raw import decompress_raw_disk
from sender.imaging.foreign.foreign_file import ForeignFile
from sender.imaging.foreign.import_limits import ImportLimits, OnProgress
from sender.imaging.foreign.partclone_sources import (
    convert_directory,
    convert_partclone_file,
    holds_partclone,
)
from sender.imaging.foreign.sniff import COMPRESSED_FORMATS, VIRTUAL_DISK_FORMATS, ForeignFormat
from sender.imaging.foreign.spool import Spool
from sender.imaging.foreign.virtual_disks import convert_virtual_disk


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source that ``pack`` can read, and facts of its format."""

    source: Source
    provenance: Provenance | None = None
    """None for a raw disk."""
    unused: NDArray[np.int64] | None = None
    """``int64[n, 2]``: half-open ranges in bytes, ascending and disjoint, of free space that the format knows; None if
    it knows none."""


@contextlib.contextmanager
def open_foreign(
    path: Path,
    format: ForeignFormat,  # noqa: A002  the word of the option and the manifest
    spool_directory: Path,
    limits: ImportLimits,
    on_progress: OnProgress = lambda *_: None,
) -> Iterator[OpenedSource]:
    """Open the disk that an image describes.

    Args:
        path: the image, or the folder of an image.
        format: see :func:`sender.imaging.foreign.sniff.sniff_format`.
        spool_directory: folder of the spool; raw disks need none.
        limits: see :class:`ImportLimits`.
        on_progress: called in this thread.

    Raises:
        SourceError: the source can't be used or read.
        ForeignImageError: it is damaged, hostile or of an unsupported kind.
        SandboxUnavailableError: this kernel can't confine the tool that reads it.
        MissingDependencyError: the tool that reads it isn't installed.
        StorageError: the spool's filesystem is full or failed.
    """
    if format is ForeignFormat.RAW:
        with Source(path) as source:
            yield OpenedSource(source)
        return
    with Spool(spool_directory, limits.raw_bytes_max) as spool:
        provenance, unused = _convert(path, format, spool, limits, on_progress)
        with Source.from_descriptor(path, spool.fd) as source:
            yield OpenedSource(source, provenance, unused)


def _convert(
    path: Path, kind: ForeignFormat, spool: Spool, limits: ImportLimits, on_progress: OnProgress
) -> tuple[Provenance, NDArray[np.int64] | None]:
    """Write the disk that an image describes into the spool."""
    if kind in (ForeignFormat.CLONEZILLA, ForeignFormat.FOG):
        return convert_directory(path, kind, spool, on_progress, allow_unsandboxed=limits.allow_unsandboxed)
    if kind is ForeignFormat.PARTCLONE or (
        kind in COMPRESSED_FORMATS and holds_partclone(path, allow_unsandboxed=limits.allow_unsandboxed)
    ):
        return convert_partclone_file(path, spool, on_progress, allow_unsandboxed=limits.allow_unsandboxed)
    convert = convert_virtual_disk if kind in VIRTUAL_DISK_FORMATS else decompress_raw_disk
    with ForeignFile(path) as file:
        try:
            return convert(file, kind, spool, limits, on_progress), None
        except ForeignImageError as error:
            raise ForeignImageError(f"{path}: {error}") from error
