"""Fluid models of paths to receivers that drive the rate controller: seeded noise, no packets.

A path is a link with a queue that other traffic may fill too, random loss, a socket and a disk.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from protocol.model.bottleneck import Bottleneck, Cause
from protocol.model.session_records import ReceiverId
from protocol.sending.rate.rate_control import RateController
from protocol.sending.rate.rate_sample import RateSample

FRAME_BYTES = 1472
STEP_S = 0.01
GRTT_S = 0.005
BUFFER_BYTES = 96e6
MBIT = 125_000.0
_WINDOW_STEPS = 10
_DELAY_STEPS = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Path:
    """A path and the machine at its end; rates in bytes per second, ``link`` and ``neighbour`` over time."""

    link: Callable[[float], float] = lambda _: math.inf
    queue_bytes: float = 512e3
    neighbour: Callable[[float], float] = lambda _: 0.0
    """Other traffic in the same queue at a rate of its own."""
    greedy_queue_bytes: float = 0.0
    """Other traffic that takes the rest of the link and keeps this many bytes in its queue, as a TCP flow does."""
    loss: float = 0.0
    loss_from_s: float = 0.0
    loss_burst: int = 1
    socket: float = math.inf
    disk: float = math.inf


def link(mbit_per_s: float, **changes: float) -> Path:
    """Return a path of this rate."""
    return Path(lambda _: mbit_per_s * MBIT, **changes)  # type: ignore[arg-type]


class _End:
    """State of one path, and the reports of its receiver."""

    def __init__(self, path: Path, phase: int, rng: np.random.Generator) -> None:
        self._path = path
        self._rng = rng
        self._queued = 0.0
        self._backlog = 0.0
        self._written = 0.0
        self._slots: deque[tuple[float, float, float]] = deque(maxlen=_WINDOW_STEPS)
        self._drops = self._lost = self._events = 0.0
        self._reported_at = -STEP_S * (phase % _WINDOW_STEPS)
        self._reported_queue = False
        self._reported_fill = 0.0
        self.silent = False
        self.overflow_bytes = 0.0
        self.expected = 0.0
        self.received = 0.0

    def carry(self, sent: float, now: float) -> None:
        """Carry ``sent`` bytes during this step."""
        path = self._path
        room = path.link(now) * STEP_S
        others = path.neighbour(now) * STEP_S
        if path.greedy_queue_bytes:
            others += max(0.0, path.greedy_queue_bytes + room - self._queued - sent)
        share = sent / max(1e-9, sent + others)
        self._queued += sent + others
        served = min(self._queued, room)
        self._queued -= served
        dropped = max(0.0, self._queued - path.queue_bytes)
        self._queued -= dropped
        delay_s = self._queued / path.link(now)

        came = served * share / FRAME_BYTES
        lost = dropped * share / FRAME_BYTES
        events = (
            float(self._rng.binomial(round(came / path.loss_burst), path.loss))
            if path.loss and now >= path.loss_from_s
            else 0.0
        )
        taken = min(came - events * path.loss_burst, path.socket * STEP_S / FRAME_BYTES)
        drops = came - events * path.loss_burst - taken
        self._lost += lost + events * path.loss_burst + drops
        self._events += events + math.ceil(lost / 10) + math.ceil(drops / 10)
        self._drops += drops

        self._backlog += taken * FRAME_BYTES
        written = min(self._backlog, path.disk * STEP_S)
        self._backlog -= written
        self.overflow_bytes += max(0.0, self._backlog - BUFFER_BYTES)
        self._backlog = min(self._backlog, BUFFER_BYTES)
        self._written += STEP_S * (written / STEP_S - self._written)
        self._slots.append((came + lost, taken, delay_s))
        self.expected += came + lost
        self.received += taken

    def report(self, now: float) -> RateSample | None:
        """Return a report, every 100 ms and sooner when a queue starts to stand or buffers fill."""
        fill = self._backlog / BUFFER_BYTES
        queueing = self._slots[-1][2] > 0.003
        due = now - self._reported_at >= 0.1 - 1e-9
        news = (queueing and not self._reported_queue) or fill > self._reported_fill + 0.15
        early = news and now - self._reported_at >= 0.02
        if self.silent or not (due or early):
            return None
        slots = list(self._slots)
        delay_s = min(slot[2] for slot in slots[-_DELAY_STEPS:])
        expected, received = sum(slot[0] for slot in slots), sum(slot[1] for slot in slots)
        behind = Cause.DISK if fill > 0.05 else Cause.NETWORK
        arriving_bytes_per_s = received * FRAME_BYTES / (STEP_S * len(slots))
        sample = RateSample(
            expected_count=round(expected),
            received_count=min(round(received), round(expected)),
            local_drop_count=int(self._drops),
            fill=fill,
            loss_burst=self._lost / self._events if self._events else 0.0,
            arriving_bytes_per_s=arriving_bytes_per_s,
            taken_bytes_per_s=arriving_bytes_per_s,
            queue_delay_s=delay_s,
            written_bytes_per_s=self._written,
            cause=Cause.SOCKET if self._drops >= 1 else behind,
        )
        self._drops = self._lost = self._events = 0.0
        self._reported_at = now
        self._reported_queue = queueing
        self._reported_fill = fill
        return sample


class Drive:
    """A controller and its paths; ``run`` continues from the present time."""

    def __init__(
        self,
        *paths: Path,
        sender: float = math.inf,
        maximum: float | None = None,
        fixed: float | None = None,
        share: bool = False,
    ) -> None:
        self.controller = RateController(
            fixed_bytes_per_s=fixed,
            maximum_bytes_per_s=maximum,
            frame_bytes=FRAME_BYTES,
            share=share,
            now=0.0,
        )
        self._sender = sender
        self.ends = [_End(path, index, np.random.default_rng([7, index])) for index, path in enumerate(paths)]
        self._step = 0
        self.now = 0.0
        self.bottlenecks: list[Bottleneck] = []
        self.rates: list[float] = []

    def run(self, seconds: float) -> Drive:
        """Send for ``seconds``."""
        controller = self.controller
        for _ in range(round(seconds / STEP_S)):
            self._step += 1
            self.now = self._step * STEP_S
            rate = min(controller.rate_bytes_per_s, self._sender)
            for end in self.ends:
                end.carry(rate * STEP_S, self.now)
            controller.tick(rate, self.now)
            for index, end in enumerate(self.ends):
                sample = end.report(self.now)
                if sample is not None:
                    controller.add_sample(ReceiverId(index), sample, GRTT_S, self.now)
            self.rates.append(controller.rate_bytes_per_s)
            self.bottlenecks.append(controller.bottleneck)
        return self

    def mean_rate(self, seconds: float) -> float:
        """Return the mean rate of the last ``seconds``."""
        tail = self.rates[-round(seconds / STEP_S) :]
        return sum(tail) / len(tail)

    def lost_share(self, seconds: float, index: int = 0) -> float:
        """Continue for ``seconds``; return the share of the datagrams that a receiver loses."""
        end = self.ends[index]
        expected, received = end.expected, end.received
        self.run(seconds)
        return 1.0 - (end.received - received) / (end.expected - expected)

    def bottleneck_share(self, bottleneck: Bottleneck, seconds: float) -> float:
        """Return the share of the last ``seconds`` in which this was the bottleneck."""
        tail: Sequence[Bottleneck] = self.bottlenecks[-round(seconds / STEP_S) :]
        return sum(each == bottleneck for each in tail) / len(tail)
