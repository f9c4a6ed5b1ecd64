"""An image under construction that survives its process: its rows and payload say where it stands.

There is no journal. Rows are written after the payload of their blocks, and a row that was never written is all zeros,
which no kind of block has. :meth:`ResumableImage.recover` takes the blocks from the start of the file whose rows are
valid and whose payload has their hashes: after a power cut the file may have any of its last writes and not others.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from protocol.constants import HASH_BYTES
from protocol.control.capture_messages import BATCH_BLOCKS_MAX, BlockGeometry, BlockRows
from protocol.image.block_codec import zero_hash
from protocol.image.image_format import PAGE_BYTES
from protocol.image.manifest import BlockKind
from protocol.image.manifest_format import ManifestLayout
from protocol.program.positional_reads import read_at
from sender.imaging.image_writer import ImageWriter

CheckBlocks = Callable[[BlockRows, Sequence[memoryview]], int]
"""A function that returns how many of the stored blocks of some rows are good, from the first on."""

_READ_BYTES: Final = 8 << 20
"""Payload that is checked at a time."""
_READ_ROWS: Final = 4096


class ResumableImage(ImageWriter):
    """An image under construction whose file stays until :meth:`commit` or :meth:`discard`.

    Attributes:
        next_block: first block that isn't written.
    """

    def __init__(self, path: Path, start: bytes, layout: ManifestLayout, geometry: BlockGeometry) -> None:
        """Open the temporary file, or create it; one with another start than ``start`` is emptied.

        Raises:
            ConfigurationError: the file can't be created there, or another process is writing it.
            StorageError: the disk failed.
        """
        super().__init__(path, start, layout, keep=True)
        self._geometry = geometry
        self.next_block = 0
        try:
            with self._file.translated():
                same = os.pread(self._fd, len(start), PAGE_BYTES) == start
                if not same:
                    os.ftruncate(self._fd, 0)
            self._write(PAGE_BYTES, [start])
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def recover(self, check: CheckBlocks) -> None:
        """Set the position to the first block that isn't in the file, or not undamaged.

        Reads and checks all that is there; call it once, before anything is appended.

        Raises:
            StorageError: the disk failed.
        """
        good = True
        while good and self.next_block < self._geometry.block_count:
            rows = self.read_rows(
                self.next_block, min(self.next_block + _READ_ROWS, self._geometry.block_count)
            )
            valid_count = _valid_count(rows, self._geometry)
            good = valid_count == len(rows.kind) and valid_count > 0
            for piece in _pieces(rows_between(rows, 0, valid_count)):
                good_count, stored = check(piece, self._payload_of(piece)), piece.stored
                good &= good_count == len(stored)
                whole = (
                    piece if good_count == len(stored) else rows_between(piece, 0, int(stored[good_count]))
                )
                self.next_block += len(whole.kind)
                self.payload_bytes += int(whole.stored_bytes.sum(dtype=np.int64))
                if whole is not piece:
                    break
        self._forget_rows()

    def _forget_rows(self) -> None:
        """Erase the rows behind the position: after another interruption they mustn't count."""
        layout, first = self._layout, self.next_block
        count = min(BATCH_BLOCKS_MAX, self._geometry.block_count - first)
        self._write(PAGE_BYTES + layout.kind_offset + first, [bytes(count)])
        self._write(PAGE_BYTES + layout.stored_bytes_offset + 4 * first, [bytes(4 * count)])

    def append(self, rows: BlockRows, payload: Sequence[bytes | memoryview]) -> None:
        """Write the next rows and the stored bytes of their blocks.

        Raises:
            StorageError: the disk is full or failed.
        """
        assert rows.first_block == self.next_block
        self.append_payload(payload)
        self.write_rows(rows.first_block, rows.kind, rows.stored_bytes, rows.stored_hash, rows.raw_hash)
        self.next_block += len(rows.kind)

    def read_rows(self, first: int, stop: int) -> BlockRows:
        """Return rows as they are in the file; zeros where nothing was written.

        Raises:
            StorageError: the disk failed.
        """
        layout, count = self._layout, stop - first
        return BlockRows(
            first,
            np.frombuffer(self._read(layout.kind_offset + first, count), np.uint8),
            np.frombuffer(self._read(layout.stored_bytes_offset + 4 * first, 4 * count), "<u4"),
            self._read(layout.stored_hash_offset + HASH_BYTES * first, HASH_BYTES * count),
            self._read(layout.raw_hash_offset + HASH_BYTES * first, HASH_BYTES * count),
        )

    def discard(self) -> None:
        """Remove the file when the context is left."""
        self._file.keep = False

    def _payload_of(self, rows: BlockRows) -> list[memoryview]:
        """Return the stored bytes of rows at the position; fewer at the end of the file."""
        lengths = rows.stored_bytes[rows.stored].tolist()
        data = memoryview(self._read_file(self._payload_offset + self.payload_bytes, sum(lengths)))
        parts, offset = [], 0
        for length in lengths:
            if offset + length > len(data):
                break
            parts.append(data[offset : offset + length])
            offset += length
        return parts

    def _read(self, manifest_offset: int, count: int) -> bytes:
        return self._read_file(PAGE_BYTES + manifest_offset, count).ljust(count, b"\0")

    def _read_file(self, offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        with self._file.translated():
            got = read_at(self._fd, memoryview(buffer), offset)
        return bytes(buffer[:got])


def _pieces(rows: BlockRows) -> list[BlockRows]:
    """Cut rows into pieces whose payload is read at once."""
    ends = np.cumsum(rows.stored_bytes, dtype=np.int64)
    cuts = [0]
    while cuts[-1] < len(rows.kind):
        before = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(ends, before + _READ_BYTES, "right"))))
    return [rows_between(rows, first, stop) for first, stop in itertools.pairwise(cuts)]


def rows_between(rows: BlockRows, first: int, stop: int) -> BlockRows:
    """Return the rows with these indices."""
    hashes = slice(HASH_BYTES * first, HASH_BYTES * stop)
    return BlockRows(
        rows.first_block + first,
        rows.kind[first:stop],
        rows.stored_bytes[first:stop],
        rows.stored_hash[hashes],
        rows.raw_hash[hashes],
    )


def _valid_count(rows: BlockRows, geometry: BlockGeometry) -> int:
    """Return the number of rows from the first on that a manifest may have."""
    count = len(rows.kind)
    raw_length = np.full(count, geometry.block_bytes, np.int64)
    raw_length[-1] = geometry.raw_length(rows.first_block + count - 1)
    stored_hash = np.frombuffer(rows.stored_hash, np.uint8).reshape(-1, HASH_BYTES)
    raw_hash = np.frombuffer(rows.raw_hash, np.uint8).reshape(-1, HASH_BYTES)
    zeros = np.tile(np.frombuffer(zero_hash(geometry.block_bytes), np.uint8), (count, 1))
    zeros[-1] = np.frombuffer(zero_hash(int(raw_length[-1])), np.uint8)
    stored = rows.stored_bytes
    empty = (stored == 0) & ~stored_hash.any(axis=1)
    valid = np.select(
        [rows.kind == kind for kind in (BlockKind.DATA, BlockKind.RAW, BlockKind.ZERO, BlockKind.UNUSED)],
        [
            (stored > 0) & (stored < raw_length),
            (stored == raw_length) & (stored_hash == raw_hash).all(axis=1),
            empty & (raw_hash == zeros).all(axis=1),
            empty & ~raw_hash.any(axis=1),
        ],
        default=False,
    )
    wrong = np.flatnonzero(~valid)
    return int(wrong[0]) if len(wrong) else count
