"""A token bucket: a sustained rate with bursts, for work that others can cause."""

from __future__ import annotations


class TokenBucket:
    """Tokens that refill at a constant rate up to a limit; full at first."""

    def __init__(self, *, per_s: float, burst: float) -> None:
        """Refill ``per_s`` tokens a second, up to ``burst``."""
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._at: float | None = None

    def take(self, now: float, count: float = 1.0) -> bool:
        """Take ``count`` tokens; return False, and take none, if there are fewer."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < count:
            return False
        self._tokens -= count
        return True
