"""Competing bulk TCP flow through a simulated link: CUBIC (RFC 9438) with its Reno-friendly region.

Loss is detected by later acknowledgements (SACK), and reduces the window once per round trip. There is no receive
window, no delayed acknowledgement and no pacing.
"""

from __future__ import annotations

import functools

from tests.simulation.links import Link
from tests.simulation.timeline import Timeline

_SEGMENT_BYTES = 1448
_HEADERS_BYTES = 24
"""A segment's TCP header with time stamps is this much longer than a UDP header: the frame has 1514 bytes."""
_CUBIC_C = 0.4
_CUBIC_BETA = 0.7
_CHUNK_SEGMENTS_MAX = 10
_WINDOW_START = 10.0
_TIMEOUT_S = 0.2
_HYSTART_DELAY_S = 0.004


class TcpFlow:
    """A flow that always has data to send.

    Attributes:
        delivered_bytes: application bytes that arrived.
    """

    def __init__(self, timeline: Timeline, link: Link, *, start_at: float, back_delay_s: float) -> None:
        """Start at ``start_at``; acknowledgements take ``back_delay_s``."""
        self.delivered_bytes = 0
        self._timeline = timeline
        self._link = link
        self._back_delay_s = back_delay_s
        self._window = _WINDOW_START
        self._threshold = float("inf")
        self._in_flight = 0
        self._sent_count = 0
        self._recovered_at_count = 0
        self._window_max = 0.0
        self._epoch_at: float | None = None
        self._epoch_window = 0.0
        self._rtt_s = self._rtt_min_s = 2 * link.port.delay_s + back_delay_s
        self._stopped = False
        timeline.at(start_at, self._fill)

    def stop(self) -> None:
        """Stop sending."""
        self._stopped = True

    def _fill(self) -> None:
        while (
            not self._stopped and (count := min(int(self._window) - self._in_flight, _CHUNK_SEGMENTS_MAX)) > 0
        ):
            now = self._timeline.now
            self._in_flight += count
            self._sent_count += count
            passage = self._link.send(now, count, _SEGMENT_BYTES + _HEADERS_BYTES)
            if passage is None:
                noticed_at = now + (self._rtt_s if self._in_flight > count else _TIMEOUT_S)
                arrived_count = 0
            else:
                noticed_at = passage.last_at + self._back_delay_s
                arrived_count = passage.count
            acknowledged = functools.partial(
                self._acknowledged, arrived_count, count - arrived_count, self._sent_count, now
            )
            self._timeline.at(noticed_at, acknowledged)

    def _acknowledged(self, arrived_count: int, lost_count: int, sent_count: int, sent_at: float) -> None:
        now = self._timeline.now
        self._in_flight -= arrived_count + lost_count
        self.delivered_bytes += arrived_count * _SEGMENT_BYTES
        if arrived_count:
            self._rtt_s = now - sent_at
            self._rtt_min_s = min(self._rtt_min_s, self._rtt_s)
        if lost_count:
            if sent_count > self._recovered_at_count:
                self._cut(arrived_count == 0 and self._in_flight == 0)
        else:
            self._grow(arrived_count)
        self._fill()

    def _cut(self, timed_out: bool) -> None:
        self._recovered_at_count = self._sent_count
        converging = self._window < self._window_max
        self._window_max = self._window * ((1 + _CUBIC_BETA) / 2 if converging else 1.0)
        self._threshold = max(2.0, self._window * _CUBIC_BETA)
        self._window = 2.0 if timed_out else self._threshold
        self._epoch_at = None

    def _grow(self, acknowledged_count: int) -> None:
        if self._window < self._threshold:
            self._window += acknowledged_count
            if self._rtt_s > self._rtt_min_s + _HYSTART_DELAY_S:
                self._threshold = self._window
            return
        now = self._timeline.now
        if self._epoch_at is None:
            self._epoch_at, self._epoch_window = now, self._window
            self._window_max = max(self._window_max, self._window)
        elapsed_s = now - self._epoch_at
        inflection_s = ((self._window_max - self._epoch_window) / _CUBIC_C) ** (1 / 3)
        target = _CUBIC_C * (elapsed_s + self._rtt_s - inflection_s) ** 3 + self._window_max
        target = min(max(target, self._window), 1.5 * self._window)
        self._window += acknowledged_count * (target - self._window) / self._window
        friendly_per_rtt = 3 * (1 - _CUBIC_BETA) / (1 + _CUBIC_BETA)
        self._window = max(self._window, self._epoch_window + friendly_per_rtt * elapsed_s / self._rtt_s)
