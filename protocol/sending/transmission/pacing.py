"""Pacing by two rates: an average rate, and a higher peak rate for catching up.

Like RFC 2698's two token buckets, but kept as the times at which the next burst is due, which need no refilling by a
timer.
"""

from __future__ import annotations

import math
from typing import Final

BURST_S: Final = 0.001
"""Duration of one burst at the average rate. A switch port of the same speed has to store longer ones; shorter ones
cost a wake-up each for nothing, since threads wake with a jitter of 0.1 ms."""

CREDIT_S: Final = 0.020
"""Longest arrears that are caught up: a sender that had nothing to send must not flood the network."""
CREDIT_BYTES_MAX: Final = 512 << 10
"""4 ms at 1 Gbit/s, about the time that a thread may wait for the interpreter's lock (5 ms). In a simulation of
800 Mbit/s in which every twentieth sleep lasts up to 5 ms too long, half of this loses 4.4 % of the rate, and this
0.7 %."""

PEAK_RATIO: Final = 1.5
"""Peak rate over average rate: arrears of x seconds are caught up in 2x, while a switch's queue grows by at most half
the rate."""
PEAK_BURST_S: Final = 0.005
PEAK_BURST_BYTES_MAX: Final = 128 << 10
"""Bytes that may leave back to back after a sleep that lasted too long: two super-datagrams, which cheap switches can
store. Without this, a machine on which every sleep lasts too long couldn't hold any rate."""
PEAK_FREE_BYTES_PER_S: Final = 150e6
"""Rate above gigabit links, from which only the credit applies: there a sleep lasts as long as a super-datagram, and
any further wait would cost throughput."""


class Pacer:
    """Pacer that derives the time of the next burst from the times of earlier bursts.

    Call :meth:`wait_s`, wait, send, call :meth:`sent`. Bursts may have any size; :attr:`burst_bytes` suits the rate.
    """

    def __init__(self, rate_bytes_per_s: float, now: float) -> None:
        """Start without arrears; the first burst is due at once."""
        self._use_rate(rate_bytes_per_s)
        self._due_at = now
        """Time at which the average rate has caught up with the sent bytes; in the past for arrears."""
        self._peak_at = now
        """Time at which the peak rate has caught up with the sent bytes."""

    @property
    def rate_bytes_per_s(self) -> float:
        """Return the average rate."""
        return self._rate_bytes_per_s

    @property
    def burst_bytes(self) -> int:
        """Return the size of burst that suits the rate; fast paths may be full with less."""
        return int(BURST_S * self._rate_bytes_per_s)

    def set_rate(self, rate_bytes_per_s: float, now: float) -> None:
        """Change the rate; bytes sent too early are kept in bytes, arrears in seconds.

        A lower rate thus has smaller arrears, too.
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
        """Return the seconds until the next burst, of any size, may leave; 0 if it may leave now."""
        return max(0.0, self._due_at - now, self._peak_at - now)

    def sent(self, byte_count: int, now: float) -> None:
        """Note that a burst leaves at ``now``, early or late; the next wait compensates for early ones."""
        self._due_at = max(self._due_at, now - self._credit_s) + byte_count / self._rate_bytes_per_s
        self._peak_at = max(self._peak_at, now - self._peak_burst_s) + byte_count / self._peak_bytes_per_s
