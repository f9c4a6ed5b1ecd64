"""How data really leaves the sender: up to where, how fast, and whether the image's source keeps it waiting."""

from __future__ import annotations

import math

from protocol.model.bottleneck import Cause
from protocol.shared.sequence import sequence_difference

_ACHIEVED_SMOOTHING_S = 0.02
_READ_STALLED_S = 0.5
"""A read that hasn't returned for this long is a fault of the image's disk or server, not its usual pace."""
_STARVED = 0.75
"""Below this share of the rate it's the sender itself that doesn't keep up."""


class Transmission:
    """What the transmitter thread has told.

    Attributes:
        next_sequence: everything before it is on the wire.
        transmitted_at: when the last of it was, monotonic seconds.
        achieved_bytes_per_s: the smoothed rate of frames.
        read_stalled: a read of the image hangs.
    """

    def __init__(self, next_sequence: int, now: float) -> None:
        """Nothing is on the wire yet; ``next_sequence`` will be the first."""
        self.next_sequence = next_sequence
        self.transmitted_at = now
        self.achieved_bytes_per_s = 0.0
        self.read_stalled = False
        self._read_share = 0.0

    def mark(self, next_sequence: int, byte_count: int, now: float, read_s: float) -> int:
        """A batch is on the wire.

        Args:
            next_sequence: everything before it is.
            byte_count: the batch's, in frames.
            now: monotonic seconds.
            read_s: seconds that reading the image took for it.

        Returns:
            The batch's symbols.
        """
        symbol_count = sequence_difference(next_sequence, self.next_sequence)
        elapsed_s = max(1e-6, now - self.transmitted_at)
        weight = 1.0 - math.exp(-elapsed_s / _ACHIEVED_SMOOTHING_S)
        self.achieved_bytes_per_s += weight * (byte_count / elapsed_s - self.achieved_bytes_per_s)
        self._read_share += weight * (min(1.0, read_s / elapsed_s) - self._read_share)
        self.transmitted_at = now
        self.next_sequence = next_sequence
        return symbol_count

    def resume(self, now: float) -> None:
        """After a pause, which says nothing about the rate that can be achieved."""
        self.transmitted_at = now

    def note_read(self, waiting_s: float) -> None:
        """A read of the image goes on for so long; 0 if none does."""
        self.read_stalled = waiting_s >= _READ_STALLED_S
        if self.read_stalled:
            self.achieved_bytes_per_s = 0.0

    def starved_by(self, rate_bytes_per_s: float) -> Cause | None:
        """What at this machine keeps it from reaching that rate; None if it does reach it."""
        if self.read_stalled:
            return Cause.SOURCE
        if self.achieved_bytes_per_s >= _STARVED * rate_bytes_per_s:
            return None
        return Cause.SOURCE if self._read_share > 0.5 else Cause.SENDER
