"""Reception of the manifest as object 0: its blocks are decoded here, and the whole is checked against the image id."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from blake3 import blake3

from protocol.constants import MANIFEST_HASH_BYTES
from protocol.fec.reed_solomon import decode_in_place
from protocol.image.manifest_object import manifest_block_hash, manifest_source_symbols, manifest_stored_bytes
from protocol.image.stored_manifest import StoredManifest
from protocol.model.session_records import CastParameters
from protocol.receiving.block_assembly import AssembledBlock, BufferPool
from protocol.receiving.object_reception import ObjectReception
from protocol.trust.block_cipher import BlockCipher
from protocol.wire.messages import CastObject


class ManifestStore(Protocol):
    """Storage that collects a manifest in any order; it has the full size from the start."""

    def __len__(self) -> int:
        """Return the size of the whole manifest in bytes."""

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """Write a part at its offset, over any earlier content; may raise StorageError."""

    def collected(self) -> memoryview | StoredManifest:
        """Return the whole manifest once every part is written; may raise StorageError."""


class MemoryStore:
    """A :class:`ManifestStore` in memory."""

    def __init__(self, manifest_bytes: int) -> None:
        """Allocate ``manifest_bytes``."""
        self._data = memoryview(bytearray(manifest_bytes))

    def __len__(self) -> int:
        return len(self._data)

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """Write a part, as :meth:`ManifestStore.write` does."""
        self._data[offset_bytes : offset_bytes + len(data)] = data

    def collected(self) -> memoryview:
        """Return the manifest, as :meth:`ManifestStore.collected` does."""
        return self._data.toreadonly()


class ManifestReception:
    """Reception of object 0 into a store.

    Attributes:
        reception: the states of the object's blocks.
    """

    def __init__(
        self,
        parameters: CastParameters,
        pool: BufferPool,
        store: ManifestStore,
        cipher: BlockCipher | None = None,
        hashes: bytes = b"",
    ) -> None:
        """Start to receive.

        Args:
            parameters: the parameters of the cast.
            pool: buffers for the symbols.
            store: collects the manifest; ``parameters.manifest_bytes`` long.
            cipher: cipher of the cast's blocks; None if they aren't encrypted.
            hashes: hashes of the manifest's blocks, as the sender granted them; empty for none.
        """
        assert len(store) == parameters.manifest_bytes
        source_symbols = manifest_source_symbols(parameters)
        self._store = store
        self.reception = ObjectReception(
            CastObject.MANIFEST,
            source_symbols=source_symbols,
            stored_bytes=manifest_stored_bytes(parameters),
            tag_bytes=parameters.tag_bytes,
            need=np.ones(source_symbols.shape, np.bool_),
            pool=pool,
            joined_before_start=False,
        )
        self._parameters = parameters
        self._cipher = cipher
        self._hashes = hashes
        self._plain = np.empty(parameters.block_bytes if parameters.encrypted else 0, np.uint8)
        self._pass_over = False

    @property
    def complete(self) -> bool:
        """Return whether every block is in the store."""
        return self.reception.unsettled_count == 0

    def end_pass(self, sequence: int) -> None:
        """Note that the pass ended before the datagram of this number; later calls are ignored."""
        if not self._pass_over:
            self._pass_over = True
            self.reception.pass_all(sequence)

    def take_untrusted(self, assembled: AssembledBlock) -> bool:
        """Decode one assembled block into the store; its buffer can be released afterwards.

        Returns:
            False if its tag or its hash doesn't match: some of its symbols are forged. Without both only the whole
            manifest can be checked.

        Raises:
            StorageError: as the store raises.
        """
        decode_in_place(assembled.slots, assembled.slot_esi)
        piece = assembled.payload
        if self._cipher is not None:
            plain = self._plain[: piece.size - self._parameters.tag_bytes]
            if not self._cipher.open_into_untrusted(CastObject.MANIFEST, assembled.block, piece, plain):
                return False
            piece = plain
        start = MANIFEST_HASH_BYTES * assembled.block
        expected = self._hashes[start : start + MANIFEST_HASH_BYTES]
        if expected and manifest_block_hash(piece.data) != expected:
            return False
        self._store.write(assembled.block * self._parameters.block_bytes, piece.data)
        self.reception.mark_settled(np.array([assembled.block]))
        return True

    def received(self) -> memoryview | StoredManifest | None:
        """Return the collected manifest, or None if its digest isn't the image id.

        Raises:
            StorageError: as the store raises.
        """
        data = self._store.collected()
        digest = data.digest if isinstance(data, StoredManifest) else blake3(data).digest()
        return data if digest == self._parameters.image_id else None
