"""Pacing by two rates: one that is kept on average, and a higher one that bounds how fast arrears are made up.

In the spirit of RFC 2698's two token buckets, but kept as times at which the next burst is due instead of as tokens,
so that nothing has to be refilled by a timer.
"""

from __future__ import annotations

import math
from typing import Final

BURST_S: Final = 0.001
"""One burst is this much time's worth of data. Longer ones come in lumps that a switch port of the same speed has to
store; shorter ones cost a wake-up each and buy nothing, since threads wake with a jitter of 0.1 ms."""

CREDIT_S: Final = 0.020
"""Arrears older than this are forgotten: a sender that had nothing to send doesn't earn the right to a flood."""
CREDIT_BYTES_MAX: Final = 512 << 10
"""4 ms at 1 Gbit/s, about what a thread may wait for its turn at the interpreter's lock (5 ms). In a simulation of
800 Mbit/s in which every twentieth sleep lasts up to 5 ms too long, half of it loses 4.4 % of the rate, this 0.7 %."""

PEAK_RATIO: Final = 1.5
"""Arrears of x seconds are made up in 2x: soon enough, and what is in a switch's queue grows by half the rate at most
while it lasts."""
PEAK_BURST_S: Final = 0.005
PEAK_BURST_BYTES_MAX: Final = 128 << 10
"""What may leave back to back when a thread has overslept: two super-datagrams, which cheap switches can hold. Without
it a machine on which every sleep lasts too long couldn't hold any rate: it has to send more each time it wakes."""
PEAK_FREE_BYTES_PER_S: Final = 150e6
"""Beyond gigabit links only the credit counts: there a sleep lasts as long as a super-datagram, and any further wait
would cost throughput."""


class Pacer:
    """Says when the next burst may leave, from when the bursts before it really left.

    Ask :meth:`wait_s`, wait, send, tell :meth:`sent`. Bursts may be of any size, :attr:`burst_bytes` is the one that
    suits the rate.
    """

    def __init__(self, rate_bytes_per_s: float, now: float) -> None:
        """Begin without arrears; the first burst is due at once."""
        self._use_rate(rate_bytes_per_s)
        self._due_at = now
        """When the committed rate has made up for all that was sent; before now: arrears."""
        self._peak_at = now
        """The same for the peak rate."""

    @property
    def rate_bytes_per_s(self) -> float:
        """The rate that is kept on average."""
        return self._rate_bytes_per_s

    @property
    def burst_bytes(self) -> int:
        """The size of burst that suits the rate; fast paths may be full with less."""
        return int(BURST_S * self._rate_bytes_per_s)

    def set_rate(self, rate_bytes_per_s: float, now: float) -> None:
        """Change the rate; what was sent too early is kept in bytes, arrears are kept in seconds.

        Whoever is told to slow down has smaller arrears, too.
        """
        ratio = self._rate_bytes_per_s / rate_bytes_per_s
        if ratio == 1.0:
            return
        self._use_rate(rate_bytes_per_s)
        self._due_at = min(self._due_at, now) + max(0.0, self._due_at - now) * ratio
        self._peak_at = min(self._peak_at, now) + max(0.0, self._peak_at - now) * ratio

    def _use_rate(self, rate_bytes_per_s: float) -> None:
        self._rate_bytes_per_s = rate_bytes_per_s
        free = rate_bytes_per_s >= PEAK_FREE_BYTES_PER_S
        self._peak_bytes_per_s = math.inf if free else PEAK_RATIO * rate_bytes_per_s
        self._credit_s = min(CREDIT_S, CREDIT_BYTES_MAX / rate_bytes_per_s)
        self._peak_burst_s = min(PEAK_BURST_S, PEAK_BURST_BYTES_MAX / self._peak_bytes_per_s)

    def wait_s(self, now: float) -> float:
        """Seconds until the next burst may leave, of any size; 0 if it may leave now."""
        return max(0.0, self._due_at - now, self._peak_at - now)

    def sent(self, byte_count: int, now: float) -> None:
        """A burst leaves at ``now``, early or late; early ones are made up for by the next wait."""
        self._due_at = max(self._due_at, now - self._credit_s) + byte_count / self._rate_bytes_per_s
        self._peak_at = max(self._peak_at, now - self._peak_burst_s) + byte_count / self._peak_bytes_per_s
