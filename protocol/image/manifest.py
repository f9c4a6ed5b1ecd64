"""The manifest: an image's description, one row per block, as columns that are used in place.

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
import enum
import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protocol.constants import (
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    BLOCK_COUNT_MAX,
    HASH_BYTES,
    IMAGE_BYTES_MAX,
    IMAGE_NAME_BYTES_MAX,
    METADATA_BYTES_MAX,
    SOURCE_SYMBOLS_MAX,
)
from protocol.errors import ConfigurationError, ImageDamagedError, ImageFormatError
from protocol.image.file_records import pack_record, record_struct, unpack_record_untrusted
from protocol.image.image_metadata import pack_metadata, parse_metadata_untrusted
from protocol.image.stored_manifest import HashRows, StoredManifest, StoredRows
from protocol.schema.binary_fields import Field, Octets, fields_of, uint
from protocol.shared.block_masks import windows
from protocol.shared.units import format_bytes

MANIFEST_MAGIC: Final = b"\x89DCM\r\n\x1a\n"
"""Like PNG's signature: the high bit and both line ends reveal a transfer in text mode."""

FORMAT_VERSION: Final = 1
"""Version of header and manifest together; a reader refuses newer ones."""

COLUMN_ALIGNMENT: Final = 64
"""A cache line: columns never share one, and vector loads are aligned."""

_ROWS_PER_STEP: Final = 1 << 20
"""Checks and sums process the columns in steps, which keeps their temporaries below 32 MB."""

_OFFSET_STEP: Final = 1 << 10
"""Distance of the blocks with a precomputed offset; from there, any block's offset is a sum of a microsecond."""


class BlockKind(enum.IntEnum):
    """Kind of a block: the form of its stored bytes."""

    DATA = 0
    """One zstd frame."""
    RAW = 1
    """The raw bytes: compression gained nothing."""
    ZERO = 2
    """All zeros; nothing is stored."""
    UNUSED = 3
    """Free according to the filesystem: the content doesn't matter; nothing is stored."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class KindSummary:
    """Number and size of the blocks of one kind."""

    block_count: int
    raw_bytes: int
    stored_bytes: int


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


class Manifest:
    """A parsed manifest: immutable, a view of the bytes that it was parsed from.

    With a :class:`StoredManifest`, the hashes and ``data`` itself are read at each use, and raise as it does.

    Attributes:
        data: the whole manifest.
        name: the image's name, for people.
        raw_bytes: size of the disk.
        block_bytes: raw size of every block but the last.
        block_count: N.
        metadata: further facts about the source; callers ignore unknown keys.
        kind: ``uint8[N]`` of :class:`BlockKind`.
        stored_bytes: ``uint32[N]``, 0 where nothing is stored.
        stored_hash: ``uint8[N, 32]``.
        raw_hash: ``uint8[N, 32]``.
    """

    def __init__(
        self,
        data: memoryview | StoredManifest,
        head: ManifestHead,
        name: str,
        metadata: Mapping[str, object],
        image_id: bytes | None,
    ) -> None:
        """Use :meth:`parse_untrusted`; nothing is checked here."""
        self.data = data
        self.name = name
        self.raw_bytes = head.raw_bytes
        self.block_bytes = head.block_bytes
        self.block_count = n = head.block_count
        self.metadata = metadata
        self._image_id = image_id
        layout = ManifestLayout(n, head.metadata_bytes)
        self.stored_bytes: NDArray[np.uint32] = np.frombuffer(
            data[layout.stored_bytes_offset : layout.stored_bytes_offset + 4 * n], "<u4"
        )
        self.kind: NDArray[np.uint8] = np.frombuffer(
            data[layout.kind_offset : layout.kind_offset + n], np.uint8
        )
        self.stored_hash = self._hash_column(layout.stored_hash_offset)
        self.raw_hash = self._hash_column(layout.raw_hash_offset)
        for column in (self.stored_bytes, self.kind):
            column.flags.writeable = False

    def _hash_column(self, offset: int) -> HashRows:
        if isinstance(self.data, StoredManifest):
            return StoredRows(self.data, offset, self.block_count)
        flat: NDArray[np.uint8] = np.frombuffer(self.data, np.uint8, HASH_BYTES * self.block_count, offset)
        rows = flat.reshape(self.block_count, HASH_BYTES)
        rows.flags.writeable = False
        return rows

    @classmethod
    def parse_untrusted(
        cls, data: bytes | bytearray | memoryview | StoredManifest, *, image_id: bytes | None = None
    ) -> Manifest:
        """Parse a manifest without copying ``data``, which must not change while the manifest is used.

        All limits and the size rules of the kinds are checked, vectorised: 4 million rows (1 TiB) take milliseconds.
        Hashes aren't checked: the caller compares :attr:`image_id` with the expected one.

        Args:
            data: the whole manifest.
            image_id: BLAKE3 of ``data`` if the caller has already computed it.

        Raises:
            ImageFormatError: the bytes aren't a manifest, or have a newer format.
            ImageDamagedError: the manifest is damaged.
        """
        if isinstance(data, StoredManifest):
            view: memoryview | StoredManifest = data
            image_id = data.digest
        else:
            view = memoryview(data).cast("B")
        head, name = parse_head_untrusted(view[:HEAD_BYTES])
        layout = ManifestLayout(head.block_count, head.metadata_bytes)
        if len(view) != layout.manifest_bytes:
            raise ImageDamagedError(
                f"the manifest has {len(view)} bytes where {head.block_count} blocks need {layout.manifest_bytes}"
            )
        _check_padding_untrusted(view, layout, head.reserved)
        metadata = parse_metadata_untrusted(view[HEAD_BYTES : HEAD_BYTES + head.metadata_bytes])
        manifest = cls(view, head, name, MappingProxyType(metadata), image_id)
        manifest._check_rows_untrusted()
        return manifest

    def _check_rows_untrusted(self) -> None:
        full_count = self.block_count - 1
        ranges = [(rows.start, rows.stop) for rows in self._steps(full_count)]
        for start, stop in [*ranges, (full_count, self.block_count)]:
            bad = _breaks_size_rules(
                self.kind[start:stop], self.stored_bytes[start:stop], self.raw_length(stop - 1)
            )
            if bad.any():
                block = start + int(bad.argmax())
                raise ImageDamagedError(
                    f"the manifest is damaged: block {block} of kind {self.kind[block]} can't have "
                    f"{self.stored_bytes[block]} stored bytes"
                )

    def _steps(self, count: int | None = None) -> Iterator[slice]:
        n = self.block_count if count is None else count
        for start in range(0, n, _ROWS_PER_STEP):
            yield slice(start, min(n, start + _ROWS_PER_STEP))

    @functools.cached_property
    def image_id(self) -> bytes:
        """Return the BLAKE3 of the whole manifest, 32 bytes; the first use reads it all (0.1 s per TiB of image)."""
        if self._image_id is not None:
            return self._image_id
        assert isinstance(self.data, memoryview)  # a stored one came with its digest
        return blake3(self.data, max_threads=blake3.AUTO).digest()

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Return ``int64[N + 1]``: the start of each block's stored bytes in the payload, then the payload's size.

        Computed at the first use; 8 bytes per block.
        """
        offsets = np.zeros(self.block_count + 1, np.int64)
        np.cumsum(self.stored_bytes, dtype=np.int64, out=offsets[1:])
        offsets.flags.writeable = False
        return offsets

    @functools.cached_property
    def _step_offsets(self) -> NDArray[np.int64]:
        """Return ``int64``: the offset of every ``_OFFSET_STEP``-th block."""
        starts = np.arange(0, self.block_count, _OFFSET_STEP)
        sums = np.add.reduceat(self.stored_bytes, starts, dtype=np.int64)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(sums)])

    def offset_of(self, block: int) -> int:
        """Return ``offsets[block]`` without the memory of :attr:`offsets`."""
        step = block // _OFFSET_STEP
        before = self.stored_bytes[step * _OFFSET_STEP : block].sum(dtype=np.int64)
        return int(self._step_offsets[step] + before)

    @property
    def payload_bytes(self) -> int:
        """Return the sum of all stored bytes."""
        return int(self.stored_bytes.sum(dtype=np.int64))

    @property
    def stored_mask(self) -> NDArray[np.bool_]:
        """Return ``bool[N]``: blocks of kind DATA or RAW, which are cast; computed at each use, 3 ms for a TiB."""
        return self.kind <= BlockKind.RAW

    def are_stored(self, blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return ``stored_mask[blocks]`` without computing the whole mask."""
        return self.kind[blocks] <= BlockKind.RAW

    def raw_length(self, block: int) -> int:
        """Return the raw bytes of ``block``: ``block_bytes``, or less for the last."""
        return min(self.block_bytes, self.raw_bytes - block * self.block_bytes)

    def raw_bytes_of(self, blocks: NDArray[np.int64]) -> int:
        """Return the raw bytes of ``blocks`` (ascending, distinct); only the image's last one can be short."""
        if blocks.size == 0:
            return 0
        return int(blocks.size - 1) * self.block_bytes + self.raw_length(int(blocks[-1]))

    def source_symbols(self, symbol_bytes: int) -> NDArray[np.uint8]:
        """Return ``uint8[N]``: k of each block, 0 where nothing is stored.

        Raises:
            ConfigurationError: a block has more symbols than the code can carry.
        """
        largest = int(self.stored_bytes.max())
        if largest > SOURCE_SYMBOLS_MAX * symbol_bytes:
            raise ConfigurationError(
                f"a block of this image has {format_bytes(largest)}, more than {SOURCE_SYMBOLS_MAX} symbols of "
                f"{symbol_bytes} bytes: pack with a smaller --block-size or cast with a larger MTU"
            )
        symbols = np.empty(self.block_count, np.uint8)
        for rows in windows(self.block_count):
            # 32 bits are enough: a block has at most 4 MiB.
            symbols[rows] = (self.stored_bytes[rows] + np.uint32(symbol_bytes - 1)) // symbol_bytes
        return symbols

    def summary(self) -> dict[BlockKind, KindSummary]:
        """Return counts and sizes of every kind."""
        counts = dict.fromkeys(BlockKind, 0)
        stored = dict.fromkeys(BlockKind, 0)
        for rows in self._steps():
            for kind in BlockKind:
                mask = self.kind[rows] == kind
                counts[kind] += int(np.count_nonzero(mask))
                stored[kind] += int(self.stored_bytes[rows].sum(where=mask, dtype=np.int64))
        last = BlockKind(int(self.kind[-1]))
        missing_bytes = self.block_count * self.block_bytes - self.raw_bytes
        return {
            kind: KindSummary(
                counts[kind],
                counts[kind] * self.block_bytes - (missing_bytes if kind is last else 0),
                stored[kind],
            )
            for kind in BlockKind
        }


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


def _breaks_size_rules(
    kind: NDArray[np.uint8], stored_bytes: NDArray[np.uint32], raw_length: int
) -> NDArray[np.bool_]:
    """Return ``bool[n]``: the rows, all of blocks of ``raw_length``, with a stored size that their kind can't have."""
    stores = kind <= BlockKind.RAW
    bad = (stored_bytes > 0) != stores
    bad |= stored_bytes > raw_length
    bad |= (stored_bytes == raw_length) != (kind == BlockKind.RAW)
    bad |= kind > max(BlockKind)
    return np.asarray(bad, np.bool_)


def _check_padding_untrusted(
    view: memoryview | StoredManifest, layout: ManifestLayout, reserved: bytes
) -> None:
    n = layout.block_count
    gaps = (
        (HEAD_BYTES + layout.metadata_bytes, layout.stored_bytes_offset),
        (layout.stored_bytes_offset + 4 * n, layout.kind_offset),
        (layout.kind_offset + n, layout.stored_hash_offset),
        (layout.stored_hash_offset + HASH_BYTES * n, layout.raw_hash_offset),
        (layout.raw_hash_offset + HASH_BYTES * n, layout.manifest_bytes),
    )
    if any(reserved) or any(any(view[start:stop]) for start, stop in gaps):
        raise ImageDamagedError("the manifest is damaged: bytes that must be zero aren't")


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
