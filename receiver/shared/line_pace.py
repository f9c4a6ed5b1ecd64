"""The pace of progress lines, for logs and serial consoles."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LINE_INTERVAL_S: Final = 10.0
LINE_SHARE: Final = 0.05
"""A line of progress follows the last one after this time, or after this share of the image if that is sooner."""


class LinePace:
    """The pace of progress lines, for logs and serial consoles."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_at = clock()
        self._next_share = 0.0

    def due(self, share: float) -> bool:
        """Return whether a line is due at this share of the image."""
        now = self._clock()
        if now < self._next_at and share < self._next_share:
            return False
        self._next_at, self._next_share = now + LINE_INTERVAL_S, share + LINE_SHARE
        return True
