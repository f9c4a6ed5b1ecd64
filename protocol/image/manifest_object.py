"""Blocks of the manifest when it is cast as object 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.model.session_records import CastParameters


def manifest_stored_bytes(parameters: CastParameters) -> NDArray[np.uint32]:
    """Return the length of each manifest block, ``uint32[n]``: ``block_bytes``, but the rest for the last one.

    A tag of an encrypted cast comes on top.
    """
    count = parameters.manifest_block_count
    lengths = np.full(count, parameters.block_bytes, np.uint32)
    lengths[-1] = parameters.manifest_bytes - (count - 1) * parameters.block_bytes
    return lengths


def manifest_source_symbols(parameters: CastParameters) -> NDArray[np.uint8]:
    """Return the source symbols of each manifest block, ``uint8[n]``."""
    lengths = manifest_stored_bytes(parameters).astype(np.int64) + parameters.tag_bytes
    return (-(-lengths // parameters.symbol_bytes)).astype(np.uint8)
