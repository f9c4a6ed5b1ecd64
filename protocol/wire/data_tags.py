"""Tags of data datagrams: each shows that a member of the group made the number, and each number counts once.

A tag is the first half of AES-128(group key, 0^64 || sequence), where the sequence is the 32-bit number of the header
extended to 64 bits as SRTP extends its numbers (RFC 3711 section 3.3.1). One call encrypts a whole batch. A MAC of the
payload would cost more than sending it; the blocks' signed hashes cover the payload. Left to an attacker on the path:
the tag of a datagram that this receiver lost, with a symbol that its block's hash then exposes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import ECB
from numpy.typing import NDArray

from protocol.constants import DATA_AHEAD_DATAGRAMS_MAX, DATA_WINDOW_DATAGRAMS, TAG_BYTES

_BLOCK_BYTES: Final = 16
_MODULUS: Final = 1 << 32
_HALF: Final = 1 << 31
_SLOT_MASK: Final = DATA_WINDOW_DATAGRAMS - 1
assert _BLOCK_BYTES == 2 * TAG_BYTES
assert DATA_WINDOW_DATAGRAMS & _SLOT_MASK == 0


class DataTagger:
    """Tags by sequence number, with one group key."""

    def __init__(self, key: bytes) -> None:
        """Args:
        key: AES key of one run; 16 bytes.
        """
        # ECB of counters that never repeat is the counter mode's key stream, computed at any position.
        self._encryptor = Cipher(AES128(key), ECB()).encryptor()  # noqa: S305
        self._room = 0
        self._grow(0)

    def _grow(self, room: int) -> None:
        self._room = room
        self._counter_bytes = np.zeros(room * _BLOCK_BYTES, np.uint8)
        # update_into() needs almost a block more than it fills.
        self._tag_bytes = np.zeros((room + 1) * _BLOCK_BYTES, np.uint8)
        self._counters = self._counter_bytes.view(">u8")[1::2]
        self._tags = self._tag_bytes.view(np.uint64)[::2]

    def tags(self, sequences: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """Return the tags of extended sequence numbers, ``>u8[n]``, valid until the next call."""
        return self.tag_words(sequences).view(">u8")

    def tag_words(self, sequences: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the tags in memory order, ``u8[n]``, as :func:`protocol.wire.batch.header_words` has them.

        Takes 7 µs for a batch of 704.
        """
        n = sequences.shape[0]
        if n > self._room:
            self._grow(n)
        self._counters[:n] = sequences
        self._encryptor.update_into(self._counter_bytes[: n * _BLOCK_BYTES].data, self._tag_bytes.data)
        tags: NDArray[np.uint64] = self._tags[:n]
        return tags


class SequenceWindow:
    """Extended sequence numbers of accepted datagrams, each once.

    Members know the group's key and may forge numbers. The numbers are therefore extended around the latest one that
    the sender has signed, and a forged number from far ahead makes no other number look old.

    Attributes:
        anchor: the latest next sequence number that the sender has signed.
    """

    def __init__(self, next_sequence: int) -> None:
        """Accept numbers from ``next_sequence`` on: what was sent before the join is a replay."""
        self.anchor = next_sequence
        # Slot n % size holds the latest number that belongs there and counts as accepted.
        slots = np.arange(DATA_WINDOW_DATAGRAMS, dtype=np.int64)
        last = next_sequence - 1
        self._latest = last - (last - slots) % DATA_WINDOW_DATAGRAMS

    def extend(self, sequences: NDArray[np.generic]) -> NDArray[np.int64]:
        """Return header numbers, ``u4[n]``, as the 64-bit numbers that are nearest to the anchor."""
        ahead = sequences.astype(np.uint32) + np.uint32((_HALF - self.anchor) % _MODULUS)
        extended: NDArray[np.int64] = ahead.astype(np.int64) + (self.anchor - _HALF)
        return extended

    def accept(self, sequences: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Record the numbers of authentic datagrams; return those that arrive for the first time, ``bool[n]``.

        A number is taken for a repeated one, too, once another one that is a multiple of the window ahead has arrived.
        """
        slots = sequences & _SLOT_MASK
        fresh: NDArray[np.bool_] = sequences > self._latest[slots]
        fresh &= sequences <= self.anchor + DATA_AHEAD_DATAGRAMS_MAX
        ascending = bool((sequences[1:] > sequences[:-1]).all())
        if not ascending:
            first = np.zeros(sequences.shape[0], np.bool_)
            first[np.unique(sequences, return_index=True)[1]] = True
            fresh &= first
        if ascending and fresh.all():
            self._latest[slots] = sequences
        else:
            taken = np.sort(sequences[fresh])  # of two numbers for one slot the later one stays
            self._latest[taken & _SLOT_MASK] = taken
        return fresh
