"""Encryption of blocks between compression and FEC: AES-256-GCM, one message a block.

The nonce is the block's object and number, so sending a block again gives the same ciphertext, and symbols of different
passes decode together. GCM is safe with such nonces as long as one key never encrypts two plaintexts of one block:
every run has a key of its own (:mod:`protocol.trust.group_keys`), after a restart, a takeover and a revocation as well;
and the sender encrypts only bytes that match the manifest.
"""

from __future__ import annotations

import struct
from typing import Final, Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from protocol.constants import BLOCK_TAG_BYTES
from protocol.model.session_records import CastParameters
from protocol.trust.group_keys import GroupKeys

_NONCE: Final = struct.Struct(">IQ")
"""Object and block: 96 bits, the size for which GCM needs no hash of the nonce (NIST SP 800-38D, 5.2.1.1)."""


class BlockCipher:
    """The cipher of one run's blocks; usable from several threads."""

    def __init__(self, key: bytes) -> None:
        """Use a run's key for blocks."""
        self._aead = AESGCM(key)

    @classmethod
    def of(cls, parameters: CastParameters, keys: GroupKeys) -> Self | None:
        """Return the cipher of a run's blocks; None if the cast isn't encrypted."""
        return cls(keys.blocks) if parameters.encrypted else None

    def seal_into(self, object_index: int, block: int, stored: memoryview, sealed: NDArray[np.uint8]) -> None:
        """Encrypt the stored bytes of a block.

        Args:
            object_index: the object.
            block: number of the block.
            stored: its stored bytes; they must be the same at every call for this block.
            sealed: ``uint8[len(stored) + 16]``, filled with ciphertext and tag; shares no memory with ``stored``.
        """
        self._aead.encrypt_into(_NONCE.pack(object_index, block), stored, None, sealed.data)

    def open_into_untrusted(
        self, object_index: int, block: int, sealed: NDArray[np.uint8], stored: NDArray[np.uint8]
    ) -> bool:
        """Decrypt a block.

        Args:
            object_index: the object.
            block: number of the block.
            sealed: ``uint8[n]``, contiguous: ciphertext and tag as received.
            stored: ``uint8[n - 16]``, filled with the stored bytes; shares no memory with ``sealed``.

        Returns:
            False if the tag doesn't match; the content of ``stored`` is then undefined.
        """
        if sealed.size < BLOCK_TAG_BYTES:
            return False
        try:
            self._aead.decrypt_into(_NONCE.pack(object_index, block), sealed.data, None, stored.data)
        except InvalidTag:
            return False
        return True
