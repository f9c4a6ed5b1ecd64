"""A manifest, an image's description, parsed in place: one row per block, in columns."""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES, SOURCE_SYMBOLS_MAX
from protocol.errors import ConfigurationError, ImageDamagedError
from protocol.image.image_metadata import parse_metadata_untrusted
from protocol.image.manifest_format import HEAD_BYTES, ManifestHead, ManifestLayout, parse_head_untrusted
from protocol.image.stored_manifest import HashRows, StoredManifest, StoredRows
from protocol.shared.block_masks import windows
from protocol.shared.units import format_bytes

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
class KindSummary:
    """Number and size of the blocks of one kind."""

    block_count: int
    raw_bytes: int
    stored_bytes: int


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
            bad = breaks_size_rules(
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

    def with_columns(
        self,
        *,
        kind: NDArray[np.uint8],
        stored_bytes: NDArray[np.uint32],
        stored_hash: HashRows,
        raw_hash: HashRows,
    ) -> Manifest:
        """Return this manifest with other columns, unchecked; ``data``, image id and the rest stay."""
        other = copy.copy(self)
        # Caches of values that follow from the columns; the image id follows from ``data``.
        for cached in ("offsets", "_step_offsets"):
            other.__dict__.pop(cached, None)
        other.kind, other.stored_bytes = kind, stored_bytes
        other.stored_hash, other.raw_hash = stored_hash, raw_hash
        return other

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

    def source_symbols(self, symbol_bytes: int, tag_bytes: int = 0) -> NDArray[np.uint8]:
        """Return ``uint8[N]``: k of each block, 0 where nothing is stored.

        Args:
            symbol_bytes: size of a symbol.
            tag_bytes: bytes that encryption adds to each stored block.

        Raises:
            ConfigurationError: a block has more symbols than the code can carry.
        """
        largest = int(self.stored_bytes.max()) + tag_bytes
        if largest > SOURCE_SYMBOLS_MAX * symbol_bytes:
            raise ConfigurationError(
                f"a block of this image has {format_bytes(largest)}, more than {SOURCE_SYMBOLS_MAX} symbols of "
                f"{symbol_bytes} bytes: pack with a smaller --block-size or cast with a larger MTU"
            )
        symbols = np.empty(self.block_count, np.uint8)
        for rows in windows(self.block_count):
            # 32 bits are enough: a block has at most 4 MiB.
            stored = self.stored_bytes[rows]
            symbols[rows] = (stored + np.uint32(tag_bytes + symbol_bytes - 1)) // symbol_bytes
            if tag_bytes:
                symbols[rows][stored == 0] = 0
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


def breaks_size_rules(
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
