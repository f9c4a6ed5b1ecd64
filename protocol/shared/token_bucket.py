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

    def available(self, now: float) -> float:
        """Return the tokens at ``now``, monotonic seconds."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._per_s)
        self._at = now
        return self._tokens

    def take(self, now: float, count: float = 1.0) -> bool:
        """Take ``count`` tokens; return False, and take none, if there are fewer."""
        if self.available(now) < count:
            return False
        self._tokens -= count
        return True

    def spend(self, now: float, count: float) -> None:
        """Take ``count`` tokens, or all that there are."""
        self._tokens = max(0.0, self.available(now) - count)
