"""The format of a manifest: its head and the layout of its columns.

A manifest is one run of bytes, the same in the image file and on the wire (object 0); its BLAKE3 digest is the
``image_id``. Layout::

    ManifestHead   128 bytes, :data:`ManifestHead.FIELDS`
    metadata       msgpack map of text to plain values, zero-padded to a multiple of 64
    stored_bytes   u32[N]      zero-padded to a multiple of 64 (as is every column)
    kind           u8[N]
    stored_hash    u8[N, 32]   BLAKE3 of the stored bytes; zeros where nothing is stored
    raw_hash       u8[N, 32]   BLAKE3 of the raw bytes; zeros for kind UNUSED

Columns rather than rows: opening an image reads the first two, 5 bytes per block, and leaves the 64 bytes of hashes
unread until a block is used. An image has exactly one valid manifest: all padding must be zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import (
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    BLOCK_COUNT_MAX,
    HASH_BYTES,
    IMAGE_BYTES_MAX,
    IMAGE_NAME_BYTES_MAX,
    METADATA_BYTES_MAX,
)
from protocol.errors import ConfigurationError, ImageDamagedError, ImageFormatError
from protocol.image.file_records import pack_record, record_struct, unpack_record_untrusted
from protocol.image.image_metadata import pack_metadata
from protocol.schema.binary_fields import Field, Octets, fields_of, uint
from protocol.shared.units import format_bytes

MANIFEST_MAGIC: Final = b"\x89DCM\r\n\x1a\n"
"""Like PNG's signature: the high bit and both line ends reveal a transfer in text mode."""

FORMAT_VERSION: Final = 1
"""Version of header and manifest together; a reader refuses newer ones."""

COLUMN_ALIGNMENT: Final = 64
"""A cache line: columns never share one, and vector loads are aligned."""


@dataclasses.dataclass(frozen=True, slots=True)
class ManifestHead:
    """The fixed start of a manifest."""

    FIELDS: ClassVar[tuple[Field, ...]]

    magic: Annotated[bytes, Octets(8, "`89 44 43 4D 0D 0A 1A 0A`")]
    version: Annotated[int, uint(32, "format version", low=FORMAT_VERSION, high=FORMAT_VERSION)]
    block_bytes: Annotated[
        int, uint(32, "raw bytes of a block, a power of two", low=BLOCK_BYTES_MIN, high=BLOCK_BYTES_MAX)
    ]
    raw_bytes: Annotated[int, uint(64, "size of the disk", low=1, high=IMAGE_BYTES_MAX)]
    block_count: Annotated[
        int, uint(32, "N = `raw_bytes` / `block_bytes`, rounded up", low=1, high=BLOCK_COUNT_MAX)
    ]
    metadata_bytes: Annotated[
        int, uint(32, "bytes of the metadata map without padding", low=1, high=METADATA_BYTES_MAX)
    ]
    name: Annotated[bytes, Octets(IMAGE_NAME_BYTES_MAX, "UTF-8, printable, zero-padded")]
    reserved: Annotated[bytes, Octets(32, "zero")]


ManifestHead.FIELDS = fields_of(ManifestHead)
HEAD_BYTES: Final = record_struct(ManifestHead.FIELDS).size
assert HEAD_BYTES % COLUMN_ALIGNMENT == 0


def _padded(count: int) -> int:
    return -(-count // COLUMN_ALIGNMENT) * COLUMN_ALIGNMENT


@dataclasses.dataclass(frozen=True, slots=True)
class ManifestLayout:
    """Offsets of the parts of a manifest, in bytes from its start."""

    block_count: int
    metadata_bytes: int

    @property
    def stored_bytes_offset(self) -> int:
        """Return the offset of column ``stored_bytes``."""
        return HEAD_BYTES + _padded(self.metadata_bytes)

    @property
    def kind_offset(self) -> int:
        """Return the offset of column ``kind``."""
        return self.stored_bytes_offset + _padded(4 * self.block_count)

    @property
    def stored_hash_offset(self) -> int:
        """Return the offset of column ``stored_hash``."""
        return self.kind_offset + _padded(self.block_count)

    @property
    def raw_hash_offset(self) -> int:
        """Return the offset of column ``raw_hash``."""
        return self.stored_hash_offset + _padded(HASH_BYTES * self.block_count)

    @property
    def manifest_bytes(self) -> int:
        """Return the size of the manifest."""
        return self.raw_hash_offset + _padded(HASH_BYTES * self.block_count)


def block_count_of(raw_bytes: int, block_bytes: int) -> int:
    """Return the number of blocks of a disk of ``raw_bytes``; the last may be short."""
    return -(-raw_bytes // block_bytes)


def check_block_bytes(block_bytes: int) -> None:
    """Raise :class:`ConfigurationError` unless images may have blocks of ``block_bytes``."""
    if not BLOCK_BYTES_MIN <= block_bytes <= BLOCK_BYTES_MAX or block_bytes & (block_bytes - 1):
        raise ConfigurationError(
            f"a block size of {block_bytes} bytes can't be used: choose a power of two from "
            f"{format_bytes(BLOCK_BYTES_MIN)} to {format_bytes(BLOCK_BYTES_MAX)}"
        )


def check_name(name: str) -> None:
    """Raise :class:`ConfigurationError` unless ``name`` can name an image.

    Control characters are refused, since the name is shown on terminals and in metrics.
    """
    if not name or not name.isprintable() or len(name.encode()) > IMAGE_NAME_BYTES_MAX:
        raise ConfigurationError(
            f"{name!r} can't name an image: use 1 to {IMAGE_NAME_BYTES_MAX} bytes of printable UTF-8"
        )


def build_manifest_start(
    name: str, raw_bytes: int, block_bytes: int, metadata: Mapping[str, object]
) -> tuple[bytes, ManifestLayout]:
    """Return the part of a manifest before its columns, padded, and the layout of the columns.

    Raises:
        ConfigurationError: the name, the block size, the disk's size or the metadata exceeds its limits.
    """
    check_name(name)
    check_block_bytes(block_bytes)
    block_count = block_count_of(raw_bytes, block_bytes)
    if not 0 < raw_bytes <= IMAGE_BYTES_MAX or block_count > BLOCK_COUNT_MAX:
        raise ConfigurationError(
            f"a disk of {format_bytes(raw_bytes)} in blocks of {format_bytes(block_bytes)} exceeds the limits of "
            f"{format_bytes(IMAGE_BYTES_MAX)} and {BLOCK_COUNT_MAX} blocks: choose a larger block size"
        )
    packed = pack_metadata(metadata)
    head = ManifestHead(
        magic=MANIFEST_MAGIC,
        version=FORMAT_VERSION,
        block_bytes=block_bytes,
        raw_bytes=raw_bytes,
        block_count=block_count,
        metadata_bytes=len(packed),
        name=name.encode().ljust(IMAGE_NAME_BYTES_MAX, b"\0"),
        reserved=bytes(32),
    )
    layout = ManifestLayout(block_count, len(packed))
    return pack_record(head, ManifestHead.FIELDS) + packed.ljust(_padded(len(packed)), b"\0"), layout


def build_manifest(
    name: str,
    raw_bytes: int,
    block_bytes: int,
    kind: NDArray[np.uint8],
    stored_bytes: NDArray[np.uint32],
    stored_hash: NDArray[np.uint8],
    raw_hash: NDArray[np.uint8],
    metadata: Mapping[str, object],
) -> bytes:
    """Build a manifest of columns ``kind[N]``, ``stored_bytes[N]``, ``stored_hash[N, 32]``, ``raw_hash[N, 32]``.

    Raises:
        ConfigurationError: as :func:`build_manifest_start`.
    """
    start, layout = build_manifest_start(name, raw_bytes, block_bytes, metadata)
    data = bytearray(layout.manifest_bytes)
    data[: len(start)] = start
    for offset, column, dtype, width in (
        (layout.stored_bytes_offset, stored_bytes, "<u4", 4),
        (layout.kind_offset, kind, "u1", 1),
        (layout.stored_hash_offset, stored_hash, "u1", HASH_BYTES),
        (layout.raw_hash_offset, raw_hash, "u1", HASH_BYTES),
    ):
        octets = np.ascontiguousarray(column, dtype).tobytes()
        assert len(octets) == width * layout.block_count
        data[offset : offset + len(octets)] = octets
    return bytes(data)


def check_magic_and_version_untrusted(data: bytes | memoryview, magic: bytes, thing: str) -> None:
    """Check the first 12 bytes of a header or manifest, which have the same form in every version.

    Raises:
        ImageFormatError: the signature is wrong, or the version is newer.
    """
    if bytes(data[: len(magic)]) != magic:
        raise ImageFormatError(f"the {thing} isn't diskcast's: its signature is missing")
    version = int.from_bytes(data[len(magic) : len(magic) + 4], "little")
    if version > FORMAT_VERSION:
        raise ImageFormatError(
            f"the {thing} was made by a newer diskcast: it has format version {version}, this version reads up to "
            f"{FORMAT_VERSION}; update diskcast"
        )


def parse_head_untrusted(start: bytes | memoryview) -> tuple[ManifestHead, str]:
    """Parse the head and the image's name from the first :data:`HEAD_BYTES` of a manifest, or fewer.

    Raises:
        ImageFormatError: the bytes aren't a manifest's, or have a newer format.
        ImageDamagedError: the head is truncated or damaged.
    """
    if len(start) < HEAD_BYTES:
        raise ImageDamagedError(f"the manifest is truncated: {len(start)} bytes are less than its head")
    check_magic_and_version_untrusted(start, MANIFEST_MAGIC, "manifest")
    head = unpack_record_untrusted(ManifestHead, ManifestHead.FIELDS, start, "manifest")
    if head.block_bytes & (head.block_bytes - 1):
        raise ImageDamagedError(
            f"the manifest is damaged: block_bytes {head.block_bytes} isn't a power of two"
        )
    if head.block_count != block_count_of(head.raw_bytes, head.block_bytes):
        raise ImageDamagedError("the manifest is damaged: its block count contradicts the disk's size")
    return head, _parse_name_untrusted(head.name)


def _parse_name_untrusted(padded: bytes) -> str:
    try:
        name = padded.rstrip(b"\0").decode()
        check_name(name)
    except (UnicodeDecodeError, ConfigurationError) as error:
        raise ImageDamagedError("the manifest is damaged: its name isn't printable UTF-8") from error
    return name
