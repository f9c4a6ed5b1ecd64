"""Receiving the manifest as object 0: its blocks are decoded here and the whole is checked against the image id."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from blake3 import blake3

from protocol.fec.reed_solomon import decode_in_place
from protocol.image.manifest_object import manifest_source_symbols, manifest_stored_bytes
from protocol.image.stored_manifest import StoredManifest
from protocol.model.session_records import CastParameters
from protocol.receiving.block_assembly import AssembledBlock, BufferPool
from protocol.receiving.object_reception import ObjectReception
from protocol.wire.messages import CastObject


class ManifestStore(Protocol):
    """Where a manifest is collected, in any order; as long as it is from the beginning."""

    def __len__(self) -> int:
        """Bytes of the whole manifest."""

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """Put a part into its place, instead of what may have been there; may raise StorageError."""

    def collected(self) -> memoryview | StoredManifest:
        """The whole, now that every part is there; nothing is written any more. May raise StorageError."""


class MemoryStore:
    """A :class:`ManifestStore` in memory."""

    def __init__(self, manifest_bytes: int) -> None:
        """Take the memory for ``manifest_bytes``."""
        self._data = memoryview(bytearray(manifest_bytes))

    def __len__(self) -> int:
        return len(self._data)

    def write(self, offset_bytes: int, data: memoryview) -> None:
        """See :meth:`ManifestStore.write`."""
        self._data[offset_bytes : offset_bytes + len(data)] = data

    def collected(self) -> memoryview:
        """See :meth:`ManifestStore.collected`."""
        return self._data.toreadonly()


class ManifestReception:
    """Collects object 0 into a store.

    Attributes:
        reception: the object's block states.
    """

    def __init__(self, parameters: CastParameters, pool: BufferPool, store: ManifestStore) -> None:
        """Start to receive into ``store``, which must be ``parameters.manifest_bytes`` long."""
        assert len(store) == parameters.manifest_bytes
        source_symbols = manifest_source_symbols(parameters)
        self._store = store
        self.reception = ObjectReception(
            CastObject.MANIFEST,
            source_symbols=source_symbols,
            stored_bytes=manifest_stored_bytes(parameters),
            need=np.ones(source_symbols.shape, np.bool_),
            pool=pool,
            joined_before_start=False,
        )
        self._parameters = parameters
        self._pass_over = False

    @property
    def complete(self) -> bool:
        """Whether every block is in the store."""
        return self.reception.unsettled_count == 0

    def end_pass(self, sequence: int) -> None:
        """Everything was sent before the datagram of this number; said once, it needn't be said again."""
        if not self._pass_over:
            self._pass_over = True
            self.reception.pass_all(sequence)

    def take(self, assembled: AssembledBlock) -> None:
        """Decode one assembled block into the store; its buffer can be given back afterwards.

        Raises:
            StorageError: as the store raises.
        """
        decode_in_place(assembled.slots, assembled.slot_esi)
        self._store.write(assembled.block * self._parameters.block_bytes, assembled.payload.data)
        self.reception.mark_settled(np.array([assembled.block]))

    def received(self) -> memoryview | StoredManifest | None:
        """What was collected, if it is the manifest that the image id names.

        Raises:
            StorageError: as the store raises.
        """
        data = self._store.collected()
        digest = data.digest if isinstance(data, StoredManifest) else blake3(data).digest()
        return data if digest == self._parameters.image_id else None
