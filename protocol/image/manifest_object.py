"""Blocks of the manifest when it is cast as object 0."""

from __future__ import annotations

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from protocol.constants import MANIFEST_HASH_BYTES, MANIFEST_HASHES_MAX
from protocol.image.stored_manifest import StoredManifest
from protocol.model.session_records import CastParameters


def manifest_stored_bytes(parameters: CastParameters) -> NDArray[np.uint32]:
    """Return the length of each manifest block, ``uint32[n]``: ``block_bytes``, but the rest for the last one.

    A tag of an encrypted cast comes on top.
    """
    count = parameters.manifest_block_count
    lengths = np.full(count, parameters.block_bytes, np.uint32)
    lengths[-1] = parameters.manifest_bytes - (count - 1) * parameters.block_bytes
    return lengths


def manifest_hashes(parameters: CastParameters, data: memoryview | StoredManifest) -> bytes:
    """Return the hash of each manifest block, one after the other; empty if there are too many.

    A block with a forged symbol is thus found at once, like a block of the image.
    """
    if parameters.manifest_block_count > MANIFEST_HASHES_MAX or not isinstance(data, memoryview):
        return b""
    starts = range(0, len(data), parameters.block_bytes)
    return b"".join(manifest_block_hash(data[start : start + parameters.block_bytes]) for start in starts)


def manifest_block_hash(piece: memoryview) -> bytes:
    """Return the hash of one manifest block."""
    return blake3(piece).digest(MANIFEST_HASH_BYTES)


def manifest_source_symbols(parameters: CastParameters) -> NDArray[np.uint8]:
    """Return the source symbols of each manifest block, ``uint8[n]``."""
    lengths = manifest_stored_bytes(parameters).astype(np.int64) + parameters.tag_bytes
    return (-(-lengths // parameters.symbol_bytes)).astype(np.uint8)
