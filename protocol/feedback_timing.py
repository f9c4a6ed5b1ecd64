"""When receivers speak: report intervals and NACK back-off, both scaled by the group's size."""

from __future__ import annotations

import math
import random

from protocol.constants import NACK_BACKOFF_FACTOR, REPORT_GROUP_RATE_MAX, REPORT_INTERVAL_S


def report_interval_s(receiver_count: int) -> float:
    """Seconds between two reports of one receiver, so that the group's reports stay bounded."""
    return max(REPORT_INTERVAL_S, receiver_count / REPORT_GROUP_RATE_MAX)


def nack_backoff_s(rng: random.Random, grtt_s: float, receiver_count: int) -> float:
    """A random wait before a NACK: truncated exponential over K GRTT (RFC 5401 section 4.2.1).

    Few of a large group draw an early time, so that the repair that they cause silences the rest. A single receiver
    has nobody to wait for.
    """
    if receiver_count <= 1:
        return 0.0
    time_max_s = NACK_BACKOFF_FACTOR * grtt_s
    lam = math.log(receiver_count) + 1.0
    spread = math.exp(lam) - 1.0
    x = rng.uniform(0.0, lam / time_max_s) + lam / (time_max_s * spread)
    return min(time_max_s, (time_max_s / lam) * math.log(x * spread * (time_max_s / lam)))
