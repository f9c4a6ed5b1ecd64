"""Sequence numbers modulo 2^32 (RFC 1982), and loss counted by them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MODULUS = 1 << 32
_HALF = 1 << 31


def sequence_difference(a: int, b: int) -> int:
    """Return ``a - b`` in serial number arithmetic: -2^31 .. 2^31 - 1."""
    return (a - b + _HALF) % _MODULUS - _HALF


class LossCounter:
    """Counter of datagrams sent, according to their sequence numbers, and of those that arrived.

    Attributes:
        expected_count: datagrams sent since the first one seen, by number.
        received_count: datagrams that arrived, duplicates included.
        loss_event_count: runs of consecutive numbers that were missing when a later one arrived.
        next_sequence: the number after the highest one seen.
    """

    def __init__(self) -> None:
        self.expected_count = 0
        self.received_count = 0
        self.loss_event_count = 0
        self.next_sequence = 0
        self._started = False

    def add(self, sequences: NDArray[np.generic]) -> None:
        """Count a batch of arrived sequence numbers, ``uint32[n]`` in arrival order, n > 0."""
        self.received_count += int(sequences.size)
        if not self._started:
            self._started = True
            self.next_sequence = int(sequences[0])
        # Differences from the highest so far, so that a batch across the wrap is in order.
        ahead = (sequences.astype(np.int64) - self.next_sequence + _HALF) % _MODULUS - _HALF
        gaps = int(np.count_nonzero(ahead[1:] - ahead[:-1] > 1)) + (int(ahead[0]) > 0)
        self.loss_event_count += gaps
        self._move_to((self.next_sequence + int(ahead.max()) + 1) % _MODULUS)

    def advance(self, next_sequence: int) -> None:
        """Note that everything before ``next_sequence`` was sent, whether or not it arrived."""
        if not self._started:
            self._started = True
            self.next_sequence = next_sequence
        if self._move_to(next_sequence):
            self.loss_event_count += 1

    def _move_to(self, next_sequence: int) -> bool:
        ahead = sequence_difference(next_sequence, self.next_sequence)
        if ahead > 0:
            self.expected_count += ahead
            self.next_sequence = next_sequence
        return ahead > 0
