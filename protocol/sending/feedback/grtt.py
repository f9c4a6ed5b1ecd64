"""Group round-trip time, GRTT (RFC 5740 section 5.1.1, RFC 5401 section 4.2.1), that one receiver can't set.

The RFCs take the largest round-trip time of the group, so that a single false report slows the room's feedback. Here a
receiver counts with the median of its latest measurements, and the group with the second largest of its receivers. The
farthest receiver of all has less time for its answers; the numbers in its NACKs keep repairs from being sent twice.
"""

from __future__ import annotations

import heapq
import statistics
from collections import OrderedDict, deque
from typing import Final

from protocol.constants import ECHOES_MAX, GRTT_INITIAL_S, GRTT_MAX_S, GRTT_MIN_S
from protocol.model.session_records import ReceiverId

_DECAY: Final = 0.9
"""Decay per report interval: a moment with late reports is soon forgotten."""
_LATEST: Final = 3
"""Measurements of which the median counts: a single late or false one changes nothing."""


class Echoes:
    """Time stamps that the sender has really sent: a report may echo only one of these."""

    def __init__(self) -> None:
        self._sent: OrderedDict[int, None] = OrderedDict()

    def add(self, sent_at_us: int) -> None:
        """Remember the time stamp of a control message."""
        self._sent[sent_at_us] = None
        if len(self._sent) > ECHOES_MAX:
            self._sent.popitem(last=False)

    def rtt_s(self, echo_us: int, echo_delay_us: int, now: float) -> float | None:
        """Return the round-trip time that a report's echo shows; None if it can't be true."""
        rtt_s = now - (echo_us + echo_delay_us) / 1e6
        return rtt_s if echo_us in self._sent and rtt_s >= 0.0 else None


class GrttEstimator:
    """Estimator of the group's round-trip time: it rises at the end of a report interval and falls slowly."""

    def __init__(self) -> None:
        self.grtt_s = GRTT_INITIAL_S
        self._latest: dict[ReceiverId, deque[float]] = {}
        self._interval_ends = 0.0

    def add(self, receiver_id: ReceiverId, rtt_s: float, now: float, interval_s: float) -> None:
        """Add one receiver's measured round-trip time."""
        latest = self._latest.setdefault(receiver_id, deque(maxlen=_LATEST))
        latest.append(min(max(rtt_s, GRTT_MIN_S), GRTT_MAX_S))
        if now >= self._interval_ends:
            self._interval_ends = now + interval_s
            measured_s = self._group_rtt_s()
            self.grtt_s = max(measured_s, self.grtt_s * _DECAY, GRTT_MIN_S)

    def forget(self, receiver_id: ReceiverId) -> None:
        """Drop the measurements of a receiver that doesn't count any more."""
        self._latest.pop(receiver_id, None)

    def _group_rtt_s(self) -> float:
        largest = heapq.nlargest(2, map(statistics.median_low, self._latest.values()))
        return largest[-1]
