"""Group round-trip time, GRTT (RFC 5740 section 5.1.1, RFC 5401 section 4.2.1)."""

from __future__ import annotations

from protocol.constants import GRTT_INITIAL_S, GRTT_MAX_S, GRTT_MIN_S

_DECAY = 0.9
"""Decay of the peak per report interval: a single late report doesn't slow the room for long."""


class GrttEstimator:
    """Estimator of the group's largest round-trip time: it rises at once and falls slowly."""

    def __init__(self) -> None:
        self.grtt_s = GRTT_INITIAL_S
        self._interval_peak_s = 0.0
        self._interval_ends = 0.0

    def add(self, rtt_s: float, now: float, interval_s: float) -> None:
        """Add one receiver's measured round-trip time."""
        rtt_s = min(max(rtt_s, GRTT_MIN_S), GRTT_MAX_S)
        self._interval_peak_s = max(self._interval_peak_s, rtt_s)
        if now >= self._interval_ends:
            if self._interval_peak_s > self.grtt_s:
                self.grtt_s = self._interval_peak_s
            else:
                self.grtt_s = max(self._interval_peak_s, self.grtt_s * _DECAY, GRTT_MIN_S)
            self._interval_peak_s = 0.0
            self._interval_ends = now + interval_s
