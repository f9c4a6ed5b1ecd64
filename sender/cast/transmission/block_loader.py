"""Load stored blocks as source symbols: verified, encrypted if the cast is, zero-padded, cached in reused buffers."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protocol.constants import MIB
from protocol.model.session_records import CastParameters
from protocol.trust.block_cipher import BlockCipher
from protocol.trust.group_keys import GroupKeys
from protocol.wire.messages import CastObject
from sender.imaging.image_file import ImageFile

CACHE_BYTES: Final = 8 * MIB
"""NACKs request blocks of the last round trip. This holds 80 ms at 100 MB/s; older blocks are in the page cache. With
32 MiB the sender took 8 % more processor time, because every block went into cold memory."""
_BLOCKS_MIN: Final = 2


class BlockLoader:
    """The source symbols for the frame encoder; used by one thread.

    Attributes:
        read_s: total time spent waiting for the image file.
    """

    def __init__(
        self,
        image: ImageFile,
        parameters: CastParameters,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Allocate the buffers of the cache; they take memory only when used."""
        self.read_s = 0.0
        self._reading_since: float | None = None
        self._image = image
        self._manifest = image.manifest
        self._block_bytes = parameters.block_bytes
        self._symbol_bytes = parameters.symbol_bytes
        self._tag_bytes = parameters.tag_bytes
        self._parameters = parameters
        self._keys: GroupKeys | None = None
        self._cipher: BlockCipher | None = None
        # Reused for every block: the processor's cache holds it, so encryption doesn't wait for memory.
        self._plain = np.empty(parameters.block_bytes if parameters.encrypted else 0, np.uint8)
        padded_bytes = parameters.block_symbols_max * parameters.symbol_bytes
        count = max(_BLOCKS_MIN, cache_bytes // padded_bytes)
        self._free = list(np.empty((count, padded_bytes), np.uint8))
        self._cache: OrderedDict[tuple[int, int], tuple[NDArray[np.uint8], int]] = OrderedDict()

    @property
    def waiting_s(self) -> float:
        """Seconds that the current read has taken so far, 0 without one; readable from any thread."""
        since = self._reading_since
        return 0.0 if since is None else time.monotonic() - since

    def use_keys(self, keys: GroupKeys) -> None:
        """Encrypt for the run of these keys from now on, if the cast is encrypted."""
        if keys == self._keys:
            return
        self._keys = keys
        self._cipher = BlockCipher.of(self._parameters, keys)
        if self._cipher is not None:
            self._free += [buffer for buffer, _k in self._cache.values()]
            self._cache.clear()

    def load(self, object_index: int, block: int) -> NDArray[np.uint8]:
        """Return a block as cast: its stored bytes, encrypted with a tag if the cast is, zero-padded.

        Args:
            object_index: the object.
            block: number of the block.

        Returns:
            ``uint8[k, symbol_bytes]``, valid until the next call.

        Raises:
            ImageDamagedError: the stored hash doesn't match; ImageChangedError if the file was written to or truncated
                since it was opened.
            StorageError: the disk failed.
        """
        key = (object_index, block)
        found = self._cache.get(key)
        if found is None:
            buffer = self._free.pop() if self._free else self._cache.popitem(last=False)[1][0]
            try:
                count = self._fill(buffer, object_index, block)
            except BaseException:
                self._free.append(buffer)
                raise
            k = -(-count // self._symbol_bytes)
            buffer[count : k * self._symbol_bytes] = 0
            found = self._cache[key] = (buffer, k)
        else:
            self._cache.move_to_end(key)
        buffer, k = found
        return buffer[: k * self._symbol_bytes].reshape(k, self._symbol_bytes)

    def read_cast_bytes(self, keys: GroupKeys, block: int) -> bytes:
        """Return an image block as cast in the run of ``keys``, without padding; errors as :meth:`load`."""
        self.use_keys(keys)
        count = int(self._manifest.stored_bytes[block]) + self._tag_bytes
        return self.load(CastObject.IMAGE, block).reshape(-1)[:count].tobytes()

    def _fill(self, buffer: NDArray[np.uint8], object_index: int, block: int) -> int:
        if self._cipher is None:
            assert not self._tag_bytes, "an encrypted cast needs its keys"
            return self._read(buffer, object_index, block)
        # What was read matches the manifest: one key and nonce never encrypt two plaintexts.
        count = self._read(self._plain, object_index, block)
        sealed = buffer[: count + self._tag_bytes]
        self._cipher.seal_into(object_index, block, self._plain[:count].data, sealed)
        return sealed.size

    def _read(self, buffer: NDArray[np.uint8], object_index: int, block: int) -> int:
        started_at = self._reading_since = time.monotonic()
        try:
            if object_index != CastObject.IMAGE:
                start = block * self._block_bytes
                piece = self._manifest.data[start : start + self._block_bytes]
                buffer[: len(piece)] = piece
                return len(piece)
            count = self._image.read_stored(block, buffer.data)
            stored_hash = self._manifest.stored_hash[block].tobytes()
        finally:
            self._reading_since = None
            self.read_s += time.monotonic() - started_at
        # Receivers would detect it too, but would request the same bad bytes forever.
        if blake3(buffer[:count].data).digest() != stored_hash:
            raise self._image.wrong_block(block)
        return count
