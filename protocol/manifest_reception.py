"""Receiving the manifest as object 0: its blocks are decoded here and the whole is checked against the image id."""

from __future__ import annotations

import numpy as np
from blake3 import blake3

from protocol.block_assembly import AssembledBlock, BufferPool
from protocol.fec.reed_solomon import decode_in_place
from protocol.object_reception import ObjectReception
from protocol.session_records import CastParameters
from protocol.wire.messages import OBJECT_MANIFEST


def manifest_stored_bytes(parameters: CastParameters) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Length of each manifest block, ``uint32[n]``: pieces of ``block_bytes``, the last one shorter."""
    count = parameters.manifest_block_count
    lengths = np.full(count, parameters.block_bytes, np.uint32)
    lengths[-1] = parameters.manifest_bytes - (count - 1) * parameters.block_bytes
    return lengths


def manifest_source_symbols(parameters: CastParameters) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Source symbols of each manifest block, ``uint8[n]``."""
    lengths = manifest_stored_bytes(parameters).astype(np.int64)
    return (-(-lengths // parameters.symbol_bytes)).astype(np.uint8)


class ManifestReception:
    """Collects object 0 into ``data``.

    Attributes:
        data: ``manifest_bytes`` long; meaningful once :meth:`complete` is true.
        reception: the object's block states.
    """

    def __init__(self, parameters: CastParameters, pool: BufferPool, data: bytearray | memoryview) -> None:
        """Start to receive into ``data``, which must be ``parameters.manifest_bytes`` long."""
        assert len(data) == parameters.manifest_bytes
        source_symbols = manifest_source_symbols(parameters)
        self.data = data
        self.reception = ObjectReception(
            OBJECT_MANIFEST,
            source_symbols=source_symbols,
            stored_bytes=manifest_stored_bytes(parameters),
            need=np.ones(source_symbols.shape, np.bool_),
            pool=pool,
            joined_before_start=False,
        )
        self._parameters = parameters

    @property
    def complete(self) -> bool:
        """Whether every block is in ``data``."""
        return self.reception.unsettled_count == 0

    def take(self, assembled: AssembledBlock) -> None:
        """Decode one assembled block into ``data``; its buffer can be given back afterwards."""
        decode_in_place(assembled.slots, assembled.slot_esi)
        start = assembled.block * self._parameters.block_bytes
        self.data[start : start + assembled.stored_bytes] = assembled.payload.data
        self.reception.mark_settled(np.array([assembled.block]))

    def digest_matches(self) -> bool:
        """Whether ``data`` is the manifest that the image id names."""
        return blake3(self.data).digest() == self._parameters.image_id
