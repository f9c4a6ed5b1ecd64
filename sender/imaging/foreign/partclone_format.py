"""The header of partclone's images, format versions 0001 and 0002.

After the header come the bitmap of the blocks that are present, and those blocks, with a checksum after each
``blocks_per_checksum`` of them. The facts are from partclone's description of its formats, and from files that it
writes.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
import zlib
from typing import Final

from protocol.constants import IMAGE_BYTES_MAX, MIB
from protocol.errors import ForeignImageError

MAGIC: Final = b"partclone-image"
BITMAP_END_V1: Final = b"BiTmAgIc"
CHECKSUM_BYTES: Final = 4

HEADER_START_BYTES: Final = 36
"""Magic, names and format version: as much as shows the version."""
_V1: Final = struct.Struct("<15s 15s 4s 2x I Q Q Q 4096x")
_V2: Final = struct.Struct("<16s 14s 4s H 16s Q Q Q Q I I H H H H I B B I")
_V2_FEATURE_BYTES: Final = 18
_ENDIAN_MARK: Final = 0xC0DE
_CHECKSUM_V2_CRC32: Final = 0x20

BLOCK_BYTES_MAX: Final = 32 * MIB
"""The largest cluster of any filesystem (exFAT)."""
BLOCK_BYTES_MAX_V1: Final = MIB
"""No filesystem of that time had larger blocks; it bounds the buffers, as there is a checksum after each."""
BLOCK_COUNT_MAX: Final = 1 << 32
"""Bounds the bitmap to 512 MiB: 16 TiB in blocks of 4 KiB, and FAT's own limit in blocks of 512 bytes."""


class BitmapMode(enum.IntEnum):
    """Storage of the bitmap."""

    NONE = 0
    """No bitmap: every block is present."""
    BIT = 1
    BYTE = 8


class ChecksumMode(enum.StrEnum):
    """Checksums of the blocks."""

    NONE = "none"
    CRC32 = "crc32"
    FIRST_BYTES = "crc32-first-bytes"
    """Version 0001: a flaw of partclone feeds the CRC with the first byte of each block only."""


@dataclasses.dataclass(frozen=True, slots=True)
class PartcloneHeader:
    """The header of one partclone image, after all checks."""

    version: int
    """1 or 2."""
    tool_version: str
    """Version of partclone that wrote the file; empty for format 1."""
    filesystem: str
    """Name as partclone writes it, such as ``EXTFS`` or ``NTFS``; ``raw`` for an image of every block."""
    device_bytes: int
    """Size of the partition; at least as large as its blocks."""
    block_bytes: int
    block_count: int
    used_block_count: int
    """Blocks of the bitmap; format 1 stores the filesystem's own count, which may differ."""
    checksum: ChecksumMode
    blocks_per_checksum: int
    """0 without checksums."""
    restarts_checksum: bool
    """Each checksum covers the blocks since the one before; otherwise all blocks from the first."""
    bitmap_mode: BitmapMode

    @property
    def bytes(self) -> int:
        """Size of the header in the file."""
        return _V1.size if self.version == 1 else _V2.size


def header_bytes_untrusted(start: bytes, name: str) -> int:
    """Return the size of the header that starts with ``start``, :data:`HEADER_START_BYTES` long.

    Raises:
        ForeignImageError: it isn't a partclone image, or one of a version that isn't supported.
    """
    if not start.startswith(MAGIC) or len(start) < HEADER_START_BYTES:
        raise ForeignImageError(f"{name}: not a partclone image: it doesn't start with partclone's signature")
    version = start[30:34]
    if version == b"0001":
        return _V1.size
    if version == b"0002":
        return _V2.size
    raise ForeignImageError(
        f"{name}: partclone image of an unknown version {version!r}: only 0001 and 0002 are supported"
    )


def parse_header_untrusted(data: bytes, name: str) -> PartcloneHeader:
    """Parse a header of :func:`header_bytes_untrusted` bytes and check every field against the others.

    Raises:
        ForeignImageError: its checksum is wrong, fields contradict each other, or a feature isn't supported.
    """
    is_v1 = header_bytes_untrusted(data[:HEADER_START_BYTES], name) == _V1.size
    try:
        header = _parse_v1(data) if is_v1 else _parse_v2(data, name)
    except struct.error as error:
        raise ForeignImageError(f"{name}: the partclone header is truncated at offset {len(data)}") from error
    _check(header, name)
    return header


def _parse_v1(data: bytes) -> PartcloneHeader:
    _, filesystem, _, block_bytes, device_bytes, block_count, used_block_count = _V1.unpack(data)
    return PartcloneHeader(
        version=1,
        tool_version="",
        filesystem=_text(filesystem),
        device_bytes=device_bytes,
        block_bytes=block_bytes,
        block_count=block_count,
        used_block_count=used_block_count,
        checksum=ChecksumMode.FIRST_BYTES,
        blocks_per_checksum=1,
        restarts_checksum=False,
        bitmap_mode=BitmapMode.BYTE,
    )


def _parse_v2(data: bytes, name: str) -> PartcloneHeader:
    (
        _, tool_version, _, endian_mark, filesystem, device_bytes, block_count, _, used_block_count, block_bytes,
        feature_bytes, binary_version, _, checksum_mode, checksum_bytes, blocks_per_checksum, restarts_checksum,
        bitmap_mode, header_crc,
    ) = _V2.unpack(data)  # fmt: skip
    if header_crc != stored_crc(zlib.crc32(data[:-CHECKSUM_BYTES])):
        raise ForeignImageError(
            f"{name}: the partclone header, offset 0 to {_V2.size}, doesn't match its checksum"
        )
    if endian_mark != _ENDIAN_MARK:
        raise ForeignImageError(f"{name}: a machine of another byte order wrote this partclone image")
    if binary_version != 2 or feature_bytes != _V2_FEATURE_BYTES:
        raise ForeignImageError(f"{name}: the partclone image has features that aren't supported")
    if (checksum_mode, checksum_bytes) not in ((0, 0), (_CHECKSUM_V2_CRC32, CHECKSUM_BYTES)):
        raise ForeignImageError(
            f"{name}: the partclone image has checksums of mode {checksum_mode:#x} and {checksum_bytes} bytes: only "
            "CRC32 and none are supported"
        )
    if bool(checksum_mode) != bool(blocks_per_checksum):
        raise ForeignImageError(
            f"{name}: the partclone header contradicts itself: checksum mode {checksum_mode:#x}, but "
            f"{blocks_per_checksum} blocks per checksum"
        )
    if bitmap_mode not in tuple(BitmapMode):
        raise ForeignImageError(f"{name}: the partclone image has a bitmap of an unknown mode {bitmap_mode}")
    return PartcloneHeader(
        version=2,
        tool_version=_text(tool_version),
        filesystem=_text(filesystem),
        device_bytes=device_bytes,
        block_bytes=block_bytes,
        block_count=block_count,
        used_block_count=used_block_count,
        checksum=ChecksumMode.CRC32 if checksum_mode else ChecksumMode.NONE,
        blocks_per_checksum=blocks_per_checksum,
        restarts_checksum=bool(restarts_checksum),
        bitmap_mode=BitmapMode(bitmap_mode),
    )


def _check(header: PartcloneHeader, name: str) -> None:
    block_bytes_max = BLOCK_BYTES_MAX_V1 if header.version == 1 else BLOCK_BYTES_MAX
    if not 1 <= header.block_bytes <= block_bytes_max:
        raise ForeignImageError(
            f"{name}: the partclone header has blocks of {header.block_bytes} bytes: 1 to {block_bytes_max} are "
            "possible"
        )
    if not 1 <= header.block_count <= BLOCK_COUNT_MAX:
        raise ForeignImageError(
            f"{name}: the partclone header has {header.block_count} blocks: 1 to {BLOCK_COUNT_MAX} are possible"
        )
    if header.used_block_count > header.block_count:
        raise ForeignImageError(
            f"{name}: the partclone header contradicts itself: {header.used_block_count} of {header.block_count} "
            "blocks are used"
        )
    if not header.block_count * header.block_bytes <= header.device_bytes <= IMAGE_BYTES_MAX:
        raise ForeignImageError(
            f"{name}: the partclone header contradicts itself: {header.block_count} blocks of {header.block_bytes} "
            f"bytes on a device of {header.device_bytes} bytes (at most {IMAGE_BYTES_MAX})"
        )
    if header.bitmap_mode is BitmapMode.NONE and header.used_block_count != header.block_count:
        raise ForeignImageError(f"{name}: the partclone header has no bitmap, although blocks are unused")


def stored_crc(crc: int) -> int:
    """Return the number that partclone stores for zlib's ``crc``: it leaves out the last inversion."""
    return crc ^ 0xFFFFFFFF


def _text(field: bytes) -> str:
    text = field.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def build_header(header: PartcloneHeader) -> bytes:
    """Build a header of format 2, as partclone writes it."""
    data = _V2.pack(
        MAGIC, header.tool_version.encode(), b"0002", _ENDIAN_MARK, header.filesystem.encode(), header.device_bytes,
        header.block_count, header.used_block_count, header.used_block_count, header.block_bytes, _V2_FEATURE_BYTES,
        2, 64, 0 if header.checksum is ChecksumMode.NONE else _CHECKSUM_V2_CRC32,
        0 if header.checksum is ChecksumMode.NONE else CHECKSUM_BYTES, header.blocks_per_checksum,
        header.restarts_checksum, header.bitmap_mode, 0,
    )  # fmt: skip
    content = data[:-CHECKSUM_BYTES]
    return content + stored_crc(zlib.crc32(content)).to_bytes(CHECKSUM_BYTES, "little")
