"""Sequence numbers modulo 2^32 (RFC 1982), and loss counted by them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_MODULUS = 1 << 32
_HALF = 1 << 31

_RECENT_COUNT: Final = 64
_AHEAD_SHARE: Final = 4
"""A quarter of the latest 64 numbers may be forged. The position lags 16 numbers behind the highest one, and datagrams
are reordered by more than that."""

_PLAUSIBLE_AHEAD: Final = 32
"""The highest number is 16 ahead of the position without losses, and 32 if half of the datagrams get lost."""


def sequence_difference(a: int, b: int) -> int:
    """Return ``a - b`` in serial number arithmetic: -2^31 .. 2^31 - 1."""
    return (a - b + _HALF) % _MODULUS - _HALF


class FollowedSequence:
    """The sender's position by the numbers that arrive, whatever a minority of them claims.

    A member of the group can forge a number far ahead. If the highest number counted, every block on its way would then
    look lost: one forged datagram in a hundred would make the sender send everything three times.

    Attributes:
        next_sequence: a number that the sender has reached.
    """

    def __init__(self, next_sequence: int) -> None:
        """Start where the sender is, as it says itself."""
        self.next_sequence = next_sequence
        self._recent = np.full(_RECENT_COUNT, next_sequence - 1, np.int64)

    @property
    def highest_plausible(self) -> int:
        """Return the highest number that the sender may have sent, by what arrived."""
        return (self.next_sequence + _PLAUSIBLE_AHEAD) % _MODULUS

    def add(self, sequences: NDArray[np.generic]) -> None:
        """Follow a batch of arrived sequence numbers, ``uint32[n]``, n > 0."""
        latest = sequences[-_RECENT_COUNT:].astype(np.int64)
        if latest.size < _RECENT_COUNT:
            latest = np.concatenate([self._recent, latest])[-_RECENT_COUNT:]
        self._recent = latest
        ahead = (latest - self.next_sequence + _HALF) % _MODULUS - _HALF
        rank = latest.size - 1 - latest.size // _AHEAD_SHARE
        self.advance((self.next_sequence + int(np.partition(ahead, rank)[rank]) + 1) % _MODULUS)

    def advance(self, next_sequence: int) -> None:
        """Note that the sender has reached a number, as it says itself."""
        if sequence_difference(next_sequence, self.next_sequence) > 0:
            self.next_sequence = next_sequence


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

    def add(self, sequences: NDArray[np.generic], highest_plausible: int | None = None) -> None:
        """Count a batch of arrived sequence numbers, ``uint32[n]`` in arrival order, n > 0.

        Those above ``highest_plausible`` count as arrived and nothing more.
        """
        self.received_count += int(sequences.size)
        if not self._started:
            self._started = True
            self.next_sequence = int(sequences[0])
        # Differences from the highest so far, so that a batch across the wrap is in order.
        ahead = (sequences.astype(np.int64) - self.next_sequence + _HALF) % _MODULUS - _HALF
        if highest_plausible is not None:
            limit = sequence_difference(highest_plausible, self.next_sequence)
            if ahead.max() > limit:
                ahead = ahead[ahead <= limit]
        if ahead.size:
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
