"""Compressed raw disks: gzip, xz, zstd and bzip2, decompressed by the system's tools in the sandbox.

The tool reads its standard input and writes a pipe: it opens no file at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from protocol.constants import MIB
from protocol.errors import ForeignImageError, MissingDependencyError
from protocol.image.provenance import Provenance, SourceChecksums
from protocol.program.sandbox import ForeignTool
from protocol.program.system_tools import ToolError, find_tool
from sender.imaging.foreign.foreign_file import ForeignFile
from sender.imaging.foreign.import_limits import STALL_LIMIT_S, ImportLimits, OnProgress, time_limit_s
from sender.imaging.foreign.sniff import ForeignFormat
from sender.imaging.foreign.spool import Spool

_PIECE_BYTES: Final = MIB
"""Bytes written to the spool at once."""
_VERSION_BYTES_MAX: Final = 4096
_SECTOR_BYTES: Final = 512
_VERSION_TEXT_MAX: Final = 32
_XZ_CHECK_OFFSET: Final = 7
_ZSTD_DESCRIPTOR_OFFSET: Final = 4
_ZSTD_CHECKSUM_FLAG: Final = 1 << 2


@dataclasses.dataclass(frozen=True, slots=True)
class Decompressor:
    """A tool that decompresses its standard input."""

    arguments: tuple[str, ...]
    package: str

    @property
    def name(self) -> str:
        """The program."""
        return self.arguments[0]


DECOMPRESSORS: Final[Mapping[ForeignFormat, Decompressor]] = MappingProxyType(
    {
        ForeignFormat.GZIP: Decompressor(("gzip", "-dc"), "gzip"),
        ForeignFormat.XZ: Decompressor(("xz", "-dc", "--memlimit-decompress=512MiB", "-q"), "xz-utils"),
        # Windows of up to 512 MiB, half of the memory that the sandbox allows.
        ForeignFormat.ZSTD: Decompressor(("zstd", "-dcq", "--no-progress", "--long=29"), "zstd"),
        ForeignFormat.BZIP2: Decompressor(("bzip2", "-dc"), "bzip2"),
    }
)


def decompress_raw_disk(
    file: ForeignFile, kind: ForeignFormat, spool: Spool, limits: ImportLimits, on_progress: OnProgress
) -> Provenance:
    """Fill ``spool`` with a compressed raw disk, and return its origin; arguments and errors as for virtual disks.

    A bomb is bounded by the spool: zeros are holes, and other content ends at ``limits`` or at the reserve of the
    filesystem. Progress counts compressed bytes, because no format knows its size reliably.
    """
    decompressor = DECOMPRESSORS[kind]
    if find_tool(decompressor.name) is None:
        raise MissingDependencyError(f"{decompressor.name} isn't installed: install {decompressor.package}")
    input_fd = os.dup(file.fd)  # shares the position, which shows the progress
    try:
        os.lseek(input_fd, 0, os.SEEK_SET)
        tool = ForeignTool(
            decompressor.arguments,
            stdin_fd=input_fd,
            time_limit_s=time_limit_s(limits.raw_bytes_max),
            stall_limit_s=STALL_LIMIT_S,
            allow_unsandboxed=limits.allow_unsandboxed,
        )
        _fill(tool, file, spool, on_progress)
    except ToolError as error:
        raise ForeignImageError(
            f"the image can't be decompressed: {error}; it is truncated or damaged"
        ) from error
    finally:
        os.close(input_fd)
    file.check_unchanged()
    limits.check_raw_bytes(spool.raw_bytes)
    if spool.raw_bytes % _SECTOR_BYTES:
        raise ForeignImageError(
            f"the decompressed content has {spool.raw_bytes} bytes, no whole number of sectors: it isn't a disk's"
        )
    has_checksums = _has_checksums(kind, file.read(0, 16))
    checksums = SourceChecksums.VERIFIED if has_checksums else SourceChecksums.NONE
    return Provenance(kind.value, checksums, decompressor.name, _version(decompressor, limits))


def _fill(tool: ForeignTool, file: ForeignFile, spool: Spool, on_progress: OnProgress) -> None:
    piece, offset = bytearray(), 0
    with contextlib.closing(tool.output()) as output:
        for data in output:
            piece += data
            if len(piece) >= _PIECE_BYTES:
                whole = len(piece) - len(piece) % _PIECE_BYTES  # keeps the alignment of holes
                with memoryview(piece) as view:
                    spool.write_at(offset, view[:whole])
                offset += whole
                del piece[:whole]
                on_progress(min(os.lseek(file.fd, 0, os.SEEK_CUR), file.size_bytes), file.size_bytes)
    spool.write_at(offset, piece)
    on_progress(file.size_bytes, file.size_bytes)


def _has_checksums(kind: ForeignFormat, start: bytes) -> bool:
    """Return whether the first stream of a file has a checksum of its content, which its tool has then verified."""
    if kind is ForeignFormat.XZ:
        return len(start) > _XZ_CHECK_OFFSET and start[_XZ_CHECK_OFFSET] & 0x0F != 0
    if kind is ForeignFormat.ZSTD:
        return (
            len(start) > _ZSTD_DESCRIPTOR_OFFSET and start[_ZSTD_DESCRIPTOR_OFFSET] & _ZSTD_CHECKSUM_FLAG != 0
        )
    return True


def _version(decompressor: Decompressor, limits: ImportLimits) -> str:
    """Return the tool's version; empty if it shows none, as bzip2 does without a terminal."""
    tool = ForeignTool((decompressor.name, "--version"), allow_unsandboxed=limits.allow_unsandboxed)
    try:
        text = tool.run(_VERSION_BYTES_MAX).decode(errors="replace")
    except ToolError:
        return ""
    numbers = [word.strip(",v*") for word in text.split() if word.strip(",v*")[:1].isdigit()]
    return numbers[0][:_VERSION_TEXT_MAX] if numbers else ""
