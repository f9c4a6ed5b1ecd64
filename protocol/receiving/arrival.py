"""Measurement of arriving data: its rate, and its time in queues on the way.

Sender and receiver have different clocks, so only differences of the one-way delay are meaningful: the delay above the
smallest one measured is time in queues (as in LEDBAT, RFC 6817 section 3.2). A full link shows there before it drops
datagrams.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import Final

from protocol.constants import QUEUE_DELAY_HIGH_S
from protocol.shared.feedback_timing import ARRIVAL_WINDOW_S, SENT_AT_MODULUS, SENT_AT_TICK_S
from protocol.shared.sequence import LossCounter

_DRIFT_TICKS_PER_S: Final = 1.0
"""Rise of the smallest delay, 100 ppm: twice the difference of two crystals."""

_WINDOW_DATAGRAMS_MIN: Final = 100
_WINDOW_MAX_S: Final = 1.0
"""At a few Mbit/s the window is longer, to contain enough datagrams for a loss rate."""
_SLOT_S: Final = 0.02
_DELAY_SLOTS: Final = 3
"""Latest slots of which the smallest delay counts: enough to ignore a machine that was busy for a moment, few enough to
notice a new standing queue at once."""


@dataclasses.dataclass(slots=True)
class _Slot:
    started_at: float
    expected_at_start: int
    """Count at the start of the slot, its first batch included."""
    received_at_start: int
    least_delay_ticks: float


class ArrivalMeter:
    """Meter of the rate and loss of the last :data:`ARRIVAL_WINDOW_S`, and of the queueing delay."""

    def __init__(self, frame_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._slots: deque[_Slot] = deque()
        self._expected = 0
        self._received = 0
        self._latest_at = 0.0
        self._base_ticks: float | None = None

    def add(self, loss: LossCounter, sent_at: int | None, arrived_at: float) -> None:
        """Record a batch.

        Args:
            loss: counter that has counted the batch.
            sent_at: time stamp of one of its latest datagrams, in ticks modulo 2^16; None if its delay is unknown.
            arrived_at: when that datagram reached this machine, monotonic seconds.
        """
        self._expected, self._received = loss.expected_count, loss.received_count
        delay_ticks = math.inf if sent_at is None else self._delay_ticks(sent_at, arrived_at)
        self._latest_at = max(self._latest_at, arrived_at)
        slots = self._slots
        if not slots or arrived_at >= slots[-1].started_at + _SLOT_S:
            slots.append(_Slot(arrived_at, self._expected, self._received, delay_ticks))
            while slots[0].started_at < arrived_at - ARRIVAL_WINDOW_S - _SLOT_S and (
                slots[0].started_at < arrived_at - _WINDOW_MAX_S
                or self._expected - slots[1].expected_at_start >= _WINDOW_DATAGRAMS_MIN
            ):
                slots.popleft()
        else:
            slots[-1].least_delay_ticks = min(slots[-1].least_delay_ticks, delay_ticks)

    def _delay_ticks(self, sent_at: int, arrived_at: float) -> float:
        delay = (arrived_at / SENT_AT_TICK_S - sent_at) % SENT_AT_MODULUS
        if self._base_ticks is None:
            self._base_ticks = delay
        else:
            drift = max(0.0, arrived_at - self._latest_at) * _DRIFT_TICKS_PER_S
            self._base_ticks = (self._base_ticks + drift) % SENT_AT_MODULUS
        above = (delay - self._base_ticks + SENT_AT_MODULUS / 2) % SENT_AT_MODULUS - SENT_AT_MODULUS / 2
        if above < 0:
            self._base_ticks, above = delay, 0.0
        return above

    def rate_bytes_per_s(self, now: float) -> float:
        """Return the rate at which data arrives; 0 when too little has arrived recently."""
        if not self._slots or now - self._latest_at > ARRIVAL_WINDOW_S:
            return 0.0
        first = self._slots[0]
        # With a standing queue, the data that arrived since it formed shows the link's rate.
        for slot in reversed(self._slots):
            if slot.least_delay_ticks * SENT_AT_TICK_S < QUEUE_DELAY_HIGH_S:
                break
            if self._latest_at - slot.started_at >= ARRIVAL_WINDOW_S / 2:
                first = slot
                break
        elapsed_s = self._latest_at - first.started_at
        if elapsed_s < ARRIVAL_WINDOW_S / 2:
            return 0.0
        return (self._received - first.received_at_start) * self._frame_bytes / elapsed_s

    @property
    def recent_counts(self) -> tuple[int, int]:
        """Return the datagrams sent in the window, by their numbers, and those of them that arrived."""
        if not self._slots:
            return 0, 0
        expected_count = self._expected - self._slots[0].expected_at_start
        return expected_count, min(expected_count, self._received - self._slots[0].received_at_start)

    @property
    def queue_delay_s(self) -> float:
        """Return the smallest recent queueing delay: more than 0 means a queue that was never empty."""
        recent = list(self._slots)[-_DELAY_SLOTS:]
        least_ticks = min((slot.least_delay_ticks for slot in recent), default=0.0)
        return least_ticks * SENT_AT_TICK_S if math.isfinite(least_ticks) else 0.0
