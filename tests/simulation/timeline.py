"""Simulated time: a queue of actions."""

from __future__ import annotations

import heapq
from collections.abc import Callable

START_S = 100.0
"""Start of simulated clocks: code that only works with a clock that starts at zero fails."""


class Timeline:
    """A queue of actions at simulated times.

    Attributes:
        now: seconds.
    """

    def __init__(self) -> None:
        self.now = START_S
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Schedule ``action``; actions of the same time run in the order of these calls."""
        self._order += 1
        heapq.heappush(self._queue, (time, self._order, action))

    def step(self) -> bool:
        """Run the next action; return False if there is none."""
        if not self._queue:
            return False
        time, _, action = heapq.heappop(self._queue)
        self.now = max(self.now, time)
        action()
        return True
