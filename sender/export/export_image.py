"""Export of an image to a file of another format, which appears under its name only once it is complete."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

from protocol.errors import ConfigurationError, StorageError
from protocol.image.manifest import BlockKind
from protocol.packing.source_hash import source_sha256_of
from protocol.shared.units import format_bytes
from sender.export.clonezilla_directory import export_clonezilla
from sender.export.export_format import QEMU_FORMATS, ExportFormat, check_disk_bytes
from sender.export.qemu_export import require_qemu_img, write_by_qemu
from sender.export.raw_export import stored_raw_bytes, write_raw, write_raw_zst
from sender.imaging.image_file import ImageFile
from sender.imaging.partial_file import PartialFile


@dataclasses.dataclass(frozen=True, slots=True)
class ExportResult:
    """The exported file."""

    path: Path
    kind: ExportFormat
    file_bytes: int
    unused_bytes: int
    """Free space that the image doesn't hold, which reads as zeros."""
    sha256: bytes | None
    """SHA-256 of the disk, if the image records it and the export was compared with it."""
    duration_s: float


def export_image(
    image: ImageFile,
    output: Path,
    kind: ExportFormat,
    *,
    replace: bool = False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> ExportResult:
    """Export an open image.

    Each block is checked against its hashes. UNUSED blocks, which an image doesn't hold, read as zeros. Memory doesn't
    grow with the image.

    Args:
        image: the image.
        output: the file to write, or the directory for Clonezilla.
        kind: its format.
        replace: replace an existing file, once the new one is complete and durable; a directory is never replaced.
        on_progress: called with the bytes done and the total bytes, both without holes.

    Raises:
        ConfigurationError: the output exists or can't be created, or the disk is too large for the format.
        MissingDependencyError: qemu-img isn't installed.
        ImageDamagedError: a block doesn't match its hashes; there is no output.
        StorageError: a disk is full or failed; there is no output.
    """
    started_s = time.monotonic()
    unused_bytes = image.manifest.summary()[BlockKind.UNUSED].raw_bytes
    if kind is ExportFormat.CLONEZILLA:
        file_bytes = export_clonezilla(image, output, on_progress)
        return ExportResult(output, kind, file_bytes, unused_bytes, None, time.monotonic() - started_s)
    digest_path = output.with_name(f"{output.name}.sha256")
    writes_digest = kind is ExportFormat.RAW and source_sha256_of(image.manifest) is not None
    for path in (output, digest_path) if writes_digest else (output,):
        if os.path.lexists(path) and not replace:
            raise ConfigurationError(f"{path} exists: choose another output, or replace it with --force")
    check_disk_bytes(kind, image.manifest.raw_bytes)
    if kind in QEMU_FORMATS:
        require_qemu_img()
    sha256 = None
    with PartialFile(output, noun="the export") as file:
        if os.path.samestat(os.stat(image.path), os.fstat(file.fd)) or file.path == image.path.resolve():  # noqa: PTH116
            raise ConfigurationError(f"{output} is the image itself: choose another output")
        if kind is ExportFormat.RAW:
            _require_space(file, stored_raw_bytes(image))
            sha256 = write_raw(image, file, on_progress)
        elif kind is ExportFormat.RAW_ZST:
            sha256 = write_raw_zst(image, file, on_progress)
        else:
            write_by_qemu(image, file, QEMU_FORMATS[kind], on_progress)
        file.commit()
        file_bytes = os.fstat(file.fd).st_size
    if writes_digest and sha256 is not None:
        with PartialFile(digest_path, noun="the digest") as digest_file:
            digest_file.write_at(0, digest_line(sha256, file.path.name))
            digest_file.commit()
    return ExportResult(
        file.path,
        kind,
        file_bytes,
        unused_bytes,
        sha256,
        time.monotonic() - started_s,
    )


def digest_line(sha256: bytes, name: str) -> bytes:
    """Return a line that ``sha256sum --check`` reads; its backslash escapes are those of the program."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return os.fsencode(f"{'' if escaped == name else chr(92)}{sha256.hex()}  {escaped}\n")


def _require_space(file: PartialFile, needed_bytes: int) -> None:
    """Refuse before hours of work; a compressed or shared output may still need less or more."""
    status = os.fstatvfs(file.fd)
    free_bytes = status.f_bavail * status.f_frsize
    if needed_bytes > free_bytes:
        raise StorageError(
            f"{file.path}: the export needs {format_bytes(needed_bytes)}, and {format_bytes(free_bytes)} are free; "
            "free some space or choose another disk"
        )
