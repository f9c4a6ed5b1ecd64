"""Measurement of the transmission: progress, achieved rate, and waits for the image's source."""

from __future__ import annotations

import math

from protocol.model.bottleneck import Cause

_ACHIEVED_SMOOTHING_S = 0.02
_READ_STALLED_S = 0.5
"""Duration after which a read is a fault of the image's disk or server, not its usual speed."""
_STARVED = 0.75
"""Share of the rate below which the sender itself is the bottleneck."""


class TransmissionMeter:
    """Meter of the transmission, fed by the transmitter thread.

    Attributes:
        next_sequence: everything before it is on the wire.
        transmitted_at: time of the last batch, monotonic seconds.
        achieved_bytes_per_s: the smoothed rate of frames.
        read_stalled: whether a read of the image hangs.
    """

    def __init__(self, next_sequence: int, now: float) -> None:
        """Start with nothing on the wire; ``next_sequence`` will be the first."""
        self.next_sequence = next_sequence
        self.transmitted_at = now
        self.achieved_bytes_per_s = 0.0
        self.read_stalled = False
        self._read_share = 0.0

    def mark(self, next_sequence: int, byte_count: int, now: float, read_s: float) -> int:
        """Note that a batch is on the wire.

        Args:
            next_sequence: everything before it is on the wire.
            byte_count: size of the batch's frames.
            now: monotonic seconds.
            read_s: seconds of reading the image for the batch.

        Returns:
            The number of symbols in the batch.
        """
        symbol_count = next_sequence - self.next_sequence
        elapsed_s = max(1e-6, now - self.transmitted_at)
        weight = 1.0 - math.exp(-elapsed_s / _ACHIEVED_SMOOTHING_S)
        self.achieved_bytes_per_s += weight * (byte_count / elapsed_s - self.achieved_bytes_per_s)
        self._read_share += weight * (min(1.0, read_s / elapsed_s) - self._read_share)
        self.transmitted_at = now
        self.next_sequence = next_sequence
        return symbol_count

    def resume(self, now: float) -> None:
        """Restart the measurement after a pause, which doesn't count for the achieved rate."""
        self.transmitted_at = now

    def note_read(self, waiting_s: float) -> None:
        """Note the duration of the current read of the image; 0 if there is none."""
        self.read_stalled = waiting_s >= _READ_STALLED_S
        if self.read_stalled:
            self.achieved_bytes_per_s = 0.0

    def starved_by(self, rate_bytes_per_s: float) -> Cause | None:
        """Return the cause, on this machine, of not reaching the rate; None if it is reached."""
        if self.read_stalled:
            return Cause.SOURCE
        if self.achieved_bytes_per_s >= _STARVED * rate_bytes_per_s:
            return None
        return Cause.SOURCE if self._read_share > 0.5 else Cause.SENDER
