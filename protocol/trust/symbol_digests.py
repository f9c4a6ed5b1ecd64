"""Digests of a block's encoding symbols, by which a receiver separates the sender's symbols from a member's forgeries.

The sender draws a salt after the symbols were sent, so a forger can't choose symbols that match: four bytes are enough,
and the digests of a whole block fit one datagram. Later symbols are checked with the same digests. A forger who then
searches 2^32 symbols for a match spoils the block once more, gets a new salt, and in the end a transfer over TLS.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Self

import numpy as np
from numpy.typing import NDArray

from protocol.constants import SYMBOL_DIGEST_BYTES, SYMBOLS_MAX
from protocol.fec.reed_solomon import encode_repair


@dataclasses.dataclass(frozen=True, slots=True)
class SymbolDigests:
    """Digests of all encoding symbols of one block.

    Attributes:
        salt: unpredictable bytes of the sender.
        digests: four bytes for each encoding symbol, in order.
    """

    salt: bytes
    digests: bytes

    @classmethod
    def of(cls, source: NDArray[np.uint8], salt: bytes) -> Self:
        """Compute the digests of a block; takes about a millisecond.

        Args:
            source: ``uint8[k, symbol_bytes]``, the source symbols.
            salt: unpredictable bytes, fresh for every call.
        """
        k, symbol_bytes = source.shape
        repair = np.empty((SYMBOLS_MAX - k, symbol_bytes), np.uint8)
        encode_repair(source, k, repair)
        rows = [_digest(row, salt) for symbols in (source, repair) for row in symbols]
        return cls(salt, b"".join(rows))

    def match(self, esi: NDArray[np.uint8], symbols: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which of the symbols are the sender's, ``bool[n]``.

        Args:
            esi: ``uint8[n]``, numbers of the symbols.
            symbols: ``uint8[n, symbol_bytes]``, rows of contiguous bytes.
        """
        size, digests = SYMBOL_DIGEST_BYTES, self.digests
        rights = [
            _digest(row, self.salt) == digests[number * size : number * size + size]
            for number, row in zip(esi.tolist(), symbols, strict=True)
        ]
        return np.array(rights, np.bool_)


def _digest(symbol: NDArray[np.uint8], salt: bytes) -> bytes:
    return hashlib.blake2b(symbol.data, digest_size=SYMBOL_DIGEST_BYTES, key=salt).digest()
