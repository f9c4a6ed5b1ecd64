"""The only processor of a small machine, shared by the receive loop and the threads that decode.

While both have work, each gets half of it, as from the kernel's scheduler. Hence a machine that is flooded decodes at
half of its speed. Other programs, or the host of a virtual machine, may take a part of the processor for a time.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence

from receiver.reception.pipeline import BLOCKS_PER_BATCH
from tests.simulation.links import RateSchedule
from tests.simulation.timeline import Timeline

_STALL_INTERVAL_S = 15.0
_STALL_S = (1.0, 5.0)
_UNEVEN_S = 600.0


def uneven_paces(
    rng: random.Random, *, spread: float, stalls: bool = False
) -> tuple[tuple[float, float], ...]:
    """Return paces that change every second, as on a host with other work.

    Args:
        rng: source of the variation.
        spread: largest deviation from the full speed.
        stalls: now and then, the processor gets no time for one to five seconds.
    """
    paces: list[tuple[float, float]] = []
    time = 0.0
    stall_at = rng.expovariate(1 / _STALL_INTERVAL_S) if stalls else math.inf
    while time < _UNEVEN_S:
        if time >= stall_at:
            paces.append((time, 0.0))
            time += rng.uniform(*_STALL_S)
            stall_at = time + rng.expovariate(1 / _STALL_INTERVAL_S)
        paces.append((time, rng.uniform(1.0 - spread, 1.0 + spread)))
        time += 1.0
    return tuple(paces)


class Processor:
    """A processor and the blocks that wait for it.

    Attributes:
        decode_s: seconds of decoding so far.
    """

    def __init__(
        self,
        timeline: Timeline,
        *,
        take_bytes_per_s: float,
        decode_bytes_per_s: float,
        paces: Sequence[tuple[float, float]],
    ) -> None:
        """Args:
        timeline: simulated time.
        take_bytes_per_s: frames that it takes from the socket if it does nothing else.
        decode_bytes_per_s: blocks that it decodes, writes and verifies if it does nothing else.
        paces: ``(seconds from now, share of its speed)``, ascending; the last one above 0.
        """
        self.decode_s = 0.0
        self._timeline = timeline
        self._take_bytes_per_s = take_bytes_per_s
        self._decode_bytes_per_s = decode_bytes_per_s
        self._waiting: deque[tuple[float, float, Callable[[], None]]] = deque()
        self._decoded: list[Callable[[], None]] = []
        self._paces = RateSchedule([(timeline.now + time, pace) for time, pace in paces])
        # Times of the decoder's own clock, which stands still while the receive loop has the processor. Like all
        # work, it is counted in seconds at full speed.
        self._stolen_s = 0.0
        self._free_at = -math.inf

    @property
    def decodes(self) -> bool:
        """Return whether decoding takes time."""
        return math.isfinite(self._decode_bytes_per_s)

    @property
    def limited(self) -> bool:
        """Return whether anything takes time."""
        return self.decodes or math.isfinite(self._take_bytes_per_s)

    def take(self, byte_count: int) -> float:
        """Return the seconds that the receive loop needs for ``byte_count`` of frames."""
        now = self._clock(self._timeline.now)
        work_s = byte_count / self._take_bytes_per_s
        shared_s = min(work_s, max(0.0, self._free_at + self._stolen_s - now))
        self._stolen_s += shared_s
        return self._paces.time_of(now + work_s + shared_s) - self._timeline.now

    def decode(self, byte_count: int, done: Callable[[], None], start_at: float) -> None:
        """Decode a block after those before it; a whole batch is done at once, as in the agent's pipeline."""
        work_s = byte_count / self._decode_bytes_per_s
        self._free_at = max(self._free_at, self._clock(start_at) - self._stolen_s) + work_s
        self._waiting.append((self._free_at, work_s, done))
        if len(self._waiting) == 1:
            self._wait()

    def _clock(self, time: float) -> float:
        """Return the work that the processor could have done by ``time``, in seconds at full speed."""
        return self._paces.served(time)

    def _wait(self) -> None:
        self._timeline.at(self._paces.time_of(self._waiting[0][0] + self._stolen_s), self._advance)

    def _advance(self) -> None:
        clock = self._clock(self._timeline.now) - self._stolen_s
        while self._waiting and self._waiting[0][0] <= clock + 1e-9:
            _, work_s, done = self._waiting.popleft()
            self.decode_s += work_s
            self._decoded.append(done)
        if not self._waiting or len(self._decoded) >= BLOCKS_PER_BATCH:
            finished, self._decoded = self._decoded, []
            for done in finished:
                done()
        if self._waiting:
            self._wait()
