"""Token-bucket pacing (RFC 2697's committed rate and burst, in time instead of tokens)."""

from __future__ import annotations


class TokenBucket:
    """Says how long to wait before each burst so that the rate holds and no burst is larger than allowed.

    The bucket is kept as the time at which it will be full again, so that nothing has to be refilled by a timer.
    """

    def __init__(self, rate_bytes_per_s: float, burst_bytes: int, now: float) -> None:
        self._rate_bytes_per_s = rate_bytes_per_s
        self._burst_bytes = burst_bytes
        self._full_at = now

    @property
    def rate_bytes_per_s(self) -> float:
        """The rate that is paced to."""
        return self._rate_bytes_per_s

    def set_rate(self, rate_bytes_per_s: float, now: float) -> None:
        """Change the rate; debt already taken is kept in bytes, not in seconds."""
        if rate_bytes_per_s == self._rate_bytes_per_s:
            return
        debt_bytes = max(0.0, self._full_at - now) * self._rate_bytes_per_s
        self._rate_bytes_per_s = rate_bytes_per_s
        self._full_at = now + debt_bytes / rate_bytes_per_s

    def delay_s(self, byte_count: int, now: float) -> float:
        """Take ``byte_count`` from the bucket and return the seconds to wait before sending them.

        Zero while the burst allowance lasts. The bytes count as sent: call it once a burst.
        """
        start = max(self._full_at, now)
        delay_s = start - now - self._burst_bytes / self._rate_bytes_per_s
        self._full_at = start + byte_count / self._rate_bytes_per_s
        return max(0.0, delay_s)
