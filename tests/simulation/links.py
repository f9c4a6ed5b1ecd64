"""Bottleneck link of the simulated network: a rate that may change, a finite queue, loss.

A call of the transmitter (up to 44 datagrams) passes in constant time. The link's service is kept as the integral of
its rate over time. A datagram leaves when that integral has reached the sum of the bytes before it, so that a change of
the rate needs no recalculation.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import random
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocol.constants import IPV4_HEADER_BYTES, KIB, UDP_HEADER_BYTES

ETHERNET_HEADER_BYTES = 14
WIRE_OVERHEAD_BYTES = ETHERNET_HEADER_BYTES + IPV4_HEADER_BYTES + UDP_HEADER_BYTES
"""Bytes that a queueing discipline counts beyond a datagram's payload."""

BYTES_PER_S_OF_MBIT = 125_000.0
_TBF_BURST_BYTES = 256 * KIB
_TBF_LATENCY_S = 0.02
UNLIMITED_BYTES_PER_S = 1e12
_UNLIMITED = ((0.0, UNLIMITED_BYTES_PER_S),)


class RateSchedule:
    """A rate that changes at given times, and its integral."""

    def __init__(self, steps: Sequence[tuple[float, float]]) -> None:
        """Take ``(from this time on, bytes per second)``, ascending; the first also holds before its time."""
        self._times = [time for time, _ in steps]
        self._rates = [rate for _, rate in steps]
        self._served = [0.0]
        for (time, rate), (later, _) in itertools.pairwise(steps):
            self._served.append(self._served[-1] + (later - time) * rate)

    def rate_bytes_per_s(self, time: float) -> float:
        """Return the rate at ``time``."""
        return self._rates[max(0, bisect.bisect_right(self._times, time) - 1)]

    def served(self, time: float) -> float:
        """Return the bytes that the link can have served since the first step."""
        index = max(0, bisect.bisect_right(self._times, time) - 1)
        return self._served[index] + (time - self._times[index]) * self._rates[index]

    def time_of(self, served: float) -> float:
        """Return the time at which :meth:`served` reaches ``served``."""
        index = max(0, bisect.bisect_right(self._served, served) - 1)
        return self._times[index] + (served - self._served[index]) / self._rates[index]


@dataclasses.dataclass(frozen=True, slots=True)
class Port:
    """Model of a link.

    Attributes:
        steps: ``(seconds from the start, bytes of Ethernet frames per second)``.
        queue_bytes: length of the queue; a datagram beyond it is dropped.
        burst_bytes: bytes that pass without waiting after a pause (token bucket).
        delay_s: propagation, one way.
        loss: share of datagrams that get lost beyond the queue, independently of each other.
        lost_call_period: number of calls of which the last is lost whole; 0 for none.
        lost_calls_at: the first call after each of these times, seconds from the start, is lost whole.
        whole_calls: a call is one packet to the queue (segmentation offload), dropped whole or not at all.
    """

    steps: tuple[tuple[float, float], ...] = _UNLIMITED
    queue_bytes: float = math.inf
    burst_bytes: float = 0.0
    delay_s: float = 0.0001
    loss: float = 0.0
    lost_call_period: int = 0
    lost_calls_at: tuple[float, ...] = ()
    whole_calls: bool = False


def shaped(mbit_per_s: float, **changes: object) -> Port:
    """Return a port shaped as by ``tc qdisc ... tbf rate R burst 256kb latency 20ms``."""
    return stepped([(0.0, mbit_per_s)], **changes)


def stepped(mbit_steps: Sequence[tuple[float, float]], **changes: object) -> Port:
    """Return a shaped port with steps of ``(seconds from the start, Mbit/s)``; the queue is that of the first rate."""
    steps = tuple((time, mbit * BYTES_PER_S_OF_MBIT) for time, mbit in mbit_steps)
    queue_bytes = steps[0][1] * _TBF_LATENCY_S + _TBF_BURST_BYTES
    port = Port(steps, queue_bytes=queue_bytes, burst_bytes=_TBF_BURST_BYTES)
    return dataclasses.replace(port, **changes)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """Datagrams of a call that arrive at the far end, and their times.

    Attributes:
        rows: ``slice`` or sorted indices of the datagrams that arrive; at least one.
        count: number of these.
        first_at, last_at: arrival of the first and the last of them; the others are spread evenly between.
    """

    rows: slice | NDArray[np.intp]
    count: int
    first_at: float
    last_at: float


class Link:
    """State of one :class:`Port`.

    Attributes:
        offered_count: datagrams that came to the link.
        queue_drop_count: dropped at the end of the queue.
        path_loss_count: lost beyond the queue.
        lost_calls_count: calls lost whole beyond the queue.
    """

    def __init__(self, port: Port, start: float, rng: random.Random) -> None:
        self.port = port
        self.offered_count = 0
        self.queue_drop_count = 0
        self.path_loss_count = 0
        self.lost_calls_count = 0
        self._schedule = RateSchedule([(start + time, rate) for time, rate in port.steps])
        self._rng = rng
        # Service integral at which the bucket is full again if nothing more is sent.
        self._full_at = -math.inf
        self._next_loss = self._draw_gap()
        self._calls_count = 0
        self._lost_calls_at = deque(start + time for time in port.lost_calls_at)
        self._unlimited = port.steps == _UNLIMITED and port.queue_bytes == math.inf

    def rate_bytes_per_s(self, time: float) -> float:
        """Return the link's rate."""
        return self._schedule.rate_bytes_per_s(time)

    def capacity_bytes(self, start: float, stop: float) -> float:
        """Return the bytes that the link can carry between two times."""
        return self._schedule.served(stop) - self._schedule.served(start)

    def backlog_bytes(self, now: float) -> float:
        """Return the bytes in the queue."""
        return max(0.0, self._full_at - self.port.burst_bytes - self._schedule.served(now))

    def send(self, now: float, count: int, datagram_bytes: int) -> Passage | None:
        """Offer ``count`` datagrams of ``datagram_bytes`` payload at once; return None if none of them arrives."""
        self.offered_count += count
        accepted_count, first_at, last_at = count, now, now
        if not self._unlimited:
            queued = self._enqueue(now, count, datagram_bytes + WIRE_OVERHEAD_BYTES)
            if queued is None:
                return None
            accepted_count, first_at, last_at = queued
        rows = self._lose(accepted_count, now)
        if rows is None:
            return None
        kept_count = accepted_count if isinstance(rows, slice) else rows.size
        return Passage(rows, kept_count, first_at + self.port.delay_s, last_at + self.port.delay_s)

    def _enqueue(self, now: float, count: int, wire_bytes: int) -> tuple[int, float, float] | None:
        port, schedule = self.port, self._schedule
        served = schedule.served(now)
        self._full_at = max(self._full_at, served)
        # Negative while there are tokens left, which make room too.
        backlog = self._full_at - port.burst_bytes - served
        accepted_count = count
        if backlog + count * wire_bytes > port.queue_bytes:
            room = port.queue_bytes - backlog
            accepted_count = 0 if port.whole_calls else max(0, int(room // wire_bytes))
            self.queue_drop_count += count - accepted_count
            if accepted_count == 0:
                return None
        first = accepted_count if port.whole_calls else 1
        leaves = [
            max(now, schedule.time_of(self._full_at + ordinal * wire_bytes - port.burst_bytes))
            for ordinal in (first, accepted_count)
        ]
        self._full_at += accepted_count * wire_bytes
        return accepted_count, leaves[0], leaves[1]

    def _lose(self, count: int, now: float) -> slice | NDArray[np.intp] | None:
        port = self.port
        self._calls_count += 1
        lost = bool(port.lost_call_period) and self._calls_count % port.lost_call_period == 0
        if self._lost_calls_at and now >= self._lost_calls_at[0]:
            self._lost_calls_at.popleft()
            lost = True
        if lost:
            self.lost_calls_count += 1
            self.path_loss_count += count
            return None
        if self._next_loss >= count:
            self._next_loss -= count
            return slice(0, count)
        kept = np.ones(count, np.bool_)
        while self._next_loss < count:
            kept[self._next_loss] = False
            self._next_loss += 1 + self._draw_gap()
        self._next_loss -= count
        rows = np.flatnonzero(kept)
        self.path_loss_count += count - rows.size
        return rows if rows.size else None

    def _draw_gap(self) -> int:
        """Return the number of datagrams before the next lost one: geometric, so that lossless calls cost nothing."""
        if self.port.loss <= 0.0:
            return 1 << 62
        return int(math.log(1.0 - self._rng.random()) / math.log(1.0 - self.port.loss))
