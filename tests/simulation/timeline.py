"""Simulated time: what is to happen when, done in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable

START_S = 100.0
"""Simulated clocks begin here, so that nothing works only because time begins at zero."""


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
        """Do ``action`` at ``time``; actions of the same time are done in the order in which they were asked for."""
        self._order += 1
        heapq.heappush(self._queue, (time, self._order, action))

    def step(self) -> bool:
        """Do the next action; False when there is none."""
        if not self._queue:
            return False
        time, _, action = heapq.heappop(self._queue)
        self.now = max(self.now, time)
        action()
        return True
