"""The base of a capture: an image of the library whose blocks needn't be uploaded again."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.constants import HASH_BYTES
from protocol.control.capture_messages import BlockRows
from protocol.errors import ImageDamagedError
from protocol.image.block_codec import block_hash
from protocol.image.manifest import BlockKind
from sender.imaging.image_file import ImageFile
from sender.library.pins import OpenImage

_BLOCKS_MAX: Final = 1 << 21
"""Blocks in the index: 24 MiB, for 512 GiB of data in the usual blocks. A larger image's rest is uploaded again."""
_MANIFEST_BYTES_MAX: Final = 16 << 20
"""Manifest in memory; the hashes of a larger one are read as they are compared. There may be one base per upload."""
_KEY_BYTES: Final = 8
"""Bytes of a hash in the index; a match is compared with the whole row."""


class BaseImage:
    """A pinned image with an index by stored hash."""

    def __init__(self, pinned: OpenImage) -> None:
        """Open the image's file and index its blocks; unpin it by :meth:`close`.

        Raises:
            ImageError: it is missing or damaged.
            StorageError: its disk failed.
        """
        self._file = ImageFile.open(pinned.path, manifest_in_memory_bytes_max=_MANIFEST_BYTES_MAX)
        self._pinned = pinned
        manifest = self._file.manifest
        blocks = np.flatnonzero(manifest.kind <= BlockKind.RAW)[:_BLOCKS_MAX]
        keys = np.empty(len(blocks), np.uint64)
        for first in range(0, len(blocks), 1 << 16):  # the column of a large image isn't in memory
            part = blocks[first : first + (1 << 16)]
            keys[first : first + len(part)] = _keys(manifest.stored_hash[part])
        order = np.argsort(keys, kind="stable")
        self._keys, self._blocks = keys[order], blocks[order].astype(np.uint32)

    def find(self, rows: BlockRows) -> NDArray[np.int64]:
        """Return ``int64[m]``: for each stored row the block of this image that equals it, or -1."""
        stored = rows.stored
        found = np.full(len(stored), -1, np.int64)
        if not len(stored) or not len(self._keys):
            return found
        stored_hash = np.frombuffer(rows.stored_hash, np.uint8).reshape(-1, HASH_BYTES)[stored]
        raw_hash = np.frombuffer(rows.raw_hash, np.uint8).reshape(-1, HASH_BYTES)[stored]
        keys = _keys(stored_hash)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        manifest = self._file.manifest
        for index in np.flatnonzero(self._keys[places] == keys).tolist():
            block = int(self._blocks[places[index]])
            row = int(stored[index])
            if (
                manifest.kind[block] == rows.kind[row]
                and manifest.stored_bytes[block] == rows.stored_bytes[row]
                and np.array_equal(manifest.stored_hash[block], stored_hash[index])
                and np.array_equal(manifest.raw_hash[block], raw_hash[index])
            ):
                found[index] = block
        return found

    def read(self, block: int) -> bytes:
        """Return the stored bytes of a block.

        Raises:
            ImageDamagedError: they don't have their hash.
            StorageError: the disk failed.
        """
        buffer = memoryview(bytearray(int(self._file.manifest.stored_bytes[block])))
        self._file.read_stored(block, buffer)
        if block_hash(buffer) != self._file.manifest.stored_hash[block].tobytes():
            raise ImageDamagedError(f"{self._file.path}: block {block} of the base image is damaged")
        return bytes(buffer)

    def close(self) -> None:
        """Close the file, and unpin the image."""
        self._file.close()
        self._pinned.close()


def _keys(hashes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(hashes[:, :_KEY_BYTES]).view(np.uint64)[:, 0]
