"""A manifest too large for memory: its bytes stay in their file and are read and checked at each use.

A mapping would need less code, but truncating a mapped file, or removing its disk, kills the program with SIGBUS. A
read that fails is an error that the sender can report.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES, KIB, MIB
from protocol.errors import DiskcastError, ImageChangedError

PIECE_BYTES: Final = 64 * KIB
"""Unit of reading and checking: 2048 hashes, 40 µs, less than for a block of data. The digests of all pieces take
1/2000 of the manifest: 9 MB for the largest."""

_SWEEP_BYTES: Final = 4 * MIB
"""Large enough for BLAKE3 to use all CPUs."""

_SLOTS: Final = 16
"""Pieces in memory, a megabyte: for several threads, each at its own place in two columns."""

ReadAt = Callable[[int, memoryview], None]
"""Function that fills the memory with the manifest's bytes from an offset, or raises ImageError or StorageError."""


class HashRows(Protocol):
    """Common interface of an array ``uint8[N, 32]`` and of :class:`StoredRows`."""

    def __getitem__(self, rows: int | slice | NDArray[np.int64], /) -> NDArray[np.uint8]:
        """Return one row, ``uint8[32]``, or the rows of a slice without step or of an array, ``uint8[n, 32]``."""


class StoredManifest:
    """The bytes of a manifest in a file, sliced like a ``memoryview``, from any thread.

    A slice returns the bytes of the time when the object was created, or raises.

    Attributes:
        digest: BLAKE3 of the whole.
    """

    def __init__(
        self,
        byte_count: int,
        read: ReadAt,
        name: str,
        *,
        changed: Callable[[int], DiskcastError] | None = None,
    ) -> None:
        """Read everything once, 0.1 s for a TiB of disk.

        Args:
            byte_count: the manifest's size.
            read: reads the file, from any thread.
            name: the file's name, for error messages.
            changed: returns the error for bytes from an offset that have changed; None for an image's file.

        Raises:
            ImageError, StorageError: as ``read`` raises.
        """
        self._byte_count = byte_count
        self._read = read
        self._changed = changed or functools.partial(_image_changed, name)
        self._piece_digests: list[bytes] = []
        # Threads need no lock: a slot's pair is replaced as a whole.
        self._slots: list[tuple[int, memoryview] | None] = [None] * _SLOTS
        whole = blake3(max_threads=blake3.AUTO)
        buffer = memoryview(bytearray(min(_SWEEP_BYTES, byte_count)))
        for start in range(0, byte_count, _SWEEP_BYTES):
            part = buffer[: min(_SWEEP_BYTES, byte_count - start)]
            read(start, part)
            whole.update(part)
            self._piece_digests += [
                blake3(part[at : at + PIECE_BYTES]).digest() for at in range(0, len(part), PIECE_BYTES)
            ]
        self.digest: bytes = whole.digest()

    def __len__(self) -> int:
        return self._byte_count

    def __getitem__(self, part: slice) -> memoryview:
        """Return the bytes of a slice without step.

        Raises:
            ImageChangedError: the bytes have changed; the error of ``changed`` if the owner passed one.
            ImageError, StorageError: as the reader raises.
        """
        start, stop, step = part.indices(self._byte_count)
        assert step == 1
        first, last = start // PIECE_BYTES, max(start, stop - 1) // PIECE_BYTES
        if first == last:
            return self._piece(first)[start - first * PIECE_BYTES : max(start, stop) - first * PIECE_BYTES]
        gathered = memoryview(bytearray(stop - start))
        for index in range(first, last + 1):
            low, high = max(start, index * PIECE_BYTES), min(stop, (index + 1) * PIECE_BYTES)
            gathered[low - start : high - start] = self._piece(index)[
                low - index * PIECE_BYTES : high - index * PIECE_BYTES
            ]
        return gathered

    def _piece(self, index: int) -> memoryview:
        held = self._slots[index % _SLOTS]
        if held is not None and held[0] == index:
            return held[1]
        start = index * PIECE_BYTES
        piece = memoryview(bytearray(min(PIECE_BYTES, self._byte_count - start)))
        if piece:
            self._read(start, piece)
            if blake3(piece).digest() != self._piece_digests[index]:
                raise self._changed(start)
        self._slots[index % _SLOTS] = index, piece.toreadonly()
        return piece.toreadonly()


def _image_changed(name: str, start: int) -> ImageChangedError:
    return ImageChangedError(
        f"{name}: the image's manifest was written to while it was in use (from byte {start} of the manifest): "
        "restore the file from a good copy, and make sure that nothing writes to it"
    )


class StoredRows:
    """A column of hashes that is read at each use; see :class:`HashRows`."""

    def __init__(self, data: StoredManifest, offset: int, row_count: int) -> None:
        """Use the column of ``row_count`` hashes that starts at byte ``offset`` of ``data``."""
        self._data = data
        self._offset = offset
        self._row_count = row_count

    def __getitem__(self, rows: int | slice | NDArray[np.int64], /) -> NDArray[np.uint8]:
        """Return rows as :meth:`HashRows.__getitem__` does; raise as :meth:`StoredManifest.__getitem__` does."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self._row_count)
            assert step == 1
            return self._span(start, max(start, stop))
        if isinstance(rows, np.ndarray):
            return self._scattered(rows)
        if not 0 <= rows < self._row_count:
            raise IndexError(f"row {rows} of {self._row_count}")
        return self._span(rows, rows + 1).reshape(HASH_BYTES)

    def _span(self, start: int, stop: int) -> NDArray[np.uint8]:
        octets = self._data[self._offset + start * HASH_BYTES : self._offset + stop * HASH_BYTES]
        return np.frombuffer(octets, np.uint8).reshape(stop - start, HASH_BYTES)

    def _scattered(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if rows.size == 0:
            return np.empty((0, HASH_BYTES), np.uint8)
        found = np.empty((rows.size, HASH_BYTES), np.uint8)
        # One read for rows that share a piece, as the rows of a pass over an image do.
        pieces = (self._offset + rows * HASH_BYTES) // PIECE_BYTES
        starts = [0, *(np.flatnonzero(np.diff(pieces)) + 1).tolist(), rows.size]
        for start, stop in itertools.pairwise(starts):
            some = rows[start:stop]
            low = int(some.min())
            found[start:stop] = self._span(low, int(some.max()) + 1)[some - low]
        return found
