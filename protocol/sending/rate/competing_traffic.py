"""Detection of competing traffic: a standing queue that doesn't drain although the cast goes below its knee.

Control by delay gives way to control by loss, so that a cast would starve beside a TCP flow that keeps the queue full.
Copa (NSDI 2018) asks the same question before it enters its competitive mode: does the queue ever drain?
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

_UNDRAINED_MAX: Final = 3
"""Cuts in a row that the queue doesn't follow; fewer may be due to reports that were on the way."""
_DRAINED_SHARE: Final = 0.3
"""Share of the expected drain by which the cast's own queue falls at least."""
_COMPETING_S: Final = 10.0
"""Duration of control by loss; a queue that is seen empty ends it at once. From 1 s on no scenario changes."""


@dataclasses.dataclass(slots=True)
class CompetingTraffic:
    """The queue before one receiver since the last cut.

    Attributes:
        until: control is by loss until then, monotonic seconds.
    """

    until: float = -math.inf
    _delay_s: float = 0.0
    _drained_s: float = 0.0
    _undrained_count: int = 0

    def start_cut(self, queue_delay_s: float) -> None:
        """Note the queue at a cut of the rate."""
        self._delay_s = queue_delay_s
        self._drained_s = 0.0

    def drain(self, below_share: float, elapsed_s: float) -> None:
        """Note ``elapsed_s`` at a rate that is ``below_share`` below the knee."""
        self._drained_s += below_share * elapsed_s

    def queue_seen(self, queue_delay_s: float, now: float) -> bool:
        """Judge a queue that stands at the time of a cut; return whether it is due to competing traffic."""
        expected_s = min(self._drained_s, self._delay_s)
        if expected_s <= 0.0 or queue_delay_s < self._delay_s - _DRAINED_SHARE * expected_s:
            self._undrained_count = 0
            return False
        self._undrained_count += 1
        if self._undrained_count < _UNDRAINED_MAX:
            return False
        self._undrained_count = 0
        self.until = now + _COMPETING_S
        return True

    def queue_empty(self) -> None:
        """Return to control by delay: no other flow keeps the queue full."""
        self.until = -math.inf
        self._undrained_count = 0
