"""Timing of feedback: report intervals and NACK back-off by group size, datagram time stamps."""

from __future__ import annotations

import math
import random
from typing import Final

from protocol.constants import (
    NACK_AT_ONCE_COUNT,
    NACK_CROWD,
    REPAIR_LATENCY_S,
    REPORT_GROUP_RATE_MAX,
    REPORT_INTERVAL_MAX_S,
    REPORT_INTERVAL_S,
    REPORT_RATE_SHARE_MAX,
    REPORT_WIRE_BYTES,
)

ARRIVAL_WINDOW_S: Final = 0.1
"""Period before a report whose arrivals it describes, however rarely a receiver of a large group may report."""

SENT_AT_TICK_S: Final = 100e-6
"""Unit of the time stamps in datagrams: fine enough for queues of a millisecond."""

SENT_AT_MODULUS: Final = 1 << 16
"""Ticks after which time stamps wrap: 6.5 s, longer than any queue lasts."""


def sent_at_ticks(now: float) -> int:
    """Return the time stamp of a datagram that leaves at ``now``, monotonic seconds."""
    return int(now / SENT_AT_TICK_S) % SENT_AT_MODULUS


def report_interval_s(receiver_count: int, rate_bytes_per_s: float) -> float:
    """Return the seconds between two reports of one receiver, which bound the reports of the group.

    Args:
        receiver_count: receivers that report.
        rate_bytes_per_s: the cast's rate; reports may take a small share of it.
    """
    by_work_s = receiver_count / REPORT_GROUP_RATE_MAX
    by_rate_s = receiver_count * REPORT_WIRE_BYTES / (REPORT_RATE_SHARE_MAX * rate_bytes_per_s)
    return min(max(REPORT_INTERVAL_S, by_work_s, by_rate_s), REPORT_INTERVAL_MAX_S)


def nack_backoff_s(rng: random.Random, grtt_s: float, receiver_count: int) -> float:
    """Return a random wait before a NACK: a truncated exponential (RFC 5401 section 4.2.1), scaled by the group's size.

    Few receivers of a large group draw an early time, and the repair that they cause silences the others. With a
    density of ``exp(L t / T)``, about ``exp(L d / T)`` of them have sent a NACK before a repair that takes ``d``
    arrives; T follows from how many may. A small group doesn't wait.
    """
    if receiver_count <= NACK_AT_ONCE_COUNT:
        return 0.0
    lam = math.log(receiver_count) + 1.0
    time_max_s = (grtt_s + REPAIR_LATENCY_S) * lam / math.log(NACK_CROWD)
    spread = math.exp(lam) - 1.0
    x = rng.uniform(0.0, lam / time_max_s) + lam / (time_max_s * spread)
    return min(time_max_s, (time_max_s / lam) * math.log(x * spread * (time_max_s / lam)))
