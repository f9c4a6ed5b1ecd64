"""The only processor of a small machine, shared by the receive loop and the threads that decode.

While both have work, each gets half of it, as from the kernel's scheduler. Hence a machine that is flooded decodes at
half of its speed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from receiver.reception.pipeline import BLOCKS_PER_BATCH
from tests.simulation.timeline import Timeline


class Processor:
    """A processor and the blocks that wait for it.

    Attributes:
        decode_s: seconds of decoding so far.
    """

    def __init__(self, timeline: Timeline, *, take_bytes_per_s: float, decode_bytes_per_s: float) -> None:
        """Args:
        timeline: simulated time.
        take_bytes_per_s: frames that it takes from the socket if it does nothing else.
        decode_bytes_per_s: blocks that it decodes, writes and verifies if it does nothing else.
        """
        self.decode_s = 0.0
        self._timeline = timeline
        self._take_bytes_per_s = take_bytes_per_s
        self._decode_bytes_per_s = decode_bytes_per_s
        self._waiting: deque[tuple[float, float, Callable[[], None]]] = deque()
        self._decoded: list[Callable[[], None]] = []
        # Times of the decoder's own clock, which stands still while the receive loop has the processor.
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
        work_s = byte_count / self._take_bytes_per_s
        shared_s = min(work_s, max(0.0, self._free_at + self._stolen_s - self._timeline.now))
        self._stolen_s += shared_s
        return work_s + shared_s

    def decode(self, byte_count: int, done: Callable[[], None], start_at: float) -> None:
        """Decode a block after those before it; a whole batch is done at once, as in the agent's pipeline."""
        work_s = byte_count / self._decode_bytes_per_s
        self._free_at = max(self._free_at, start_at - self._stolen_s) + work_s
        self._waiting.append((self._free_at, work_s, done))
        if len(self._waiting) == 1:
            self._wait()

    def _wait(self) -> None:
        self._timeline.at(self._waiting[0][0] + self._stolen_s, self._advance)

    def _advance(self) -> None:
        clock = self._timeline.now - self._stolen_s
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
