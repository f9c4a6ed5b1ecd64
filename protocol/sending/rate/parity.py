"""How much repair to send before anybody asks, and how to spread blocks so that one burst doesn't hit one of them.

Losses of a block of n symbols come as about ``p n / c`` events of c symbols each, Poisson distributed. For every
receiver that gives the chance that it loses more than the parity makes up for; parity is the least with which few
receivers, of all together, have to ask. So a clean network has none, and a large group with little loss has some.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from protocol.constants import (
    BURST_SYMBOLS,
    INTERLEAVE_BLOCKS,
    INTERLEAVE_SYMBOLS,
    PARITY_FRACTION_MAX,
    SYMBOLS_MAX,
)

_ASKERS_MAX: Final = 0.4
"""Receivers per block that may have to ask, on average: fewer would cost everybody more parity than repair does."""
_ASKERS_BURSTY_MAX: Final = 1.0
"""Against bursts parity comes in whole stripes, and the last one is rarely worth sending to a group."""
_LOSS_MIN: Final = 0.0005
"""A smaller loss can't be told from none."""
_LEVELS_PER_DECADE: Final = 20
_INTERLEAVE_LOSS_MIN: Final = 0.004
_INTERLEAVE_BURST_MIN: Final = BURST_SYMBOLS / 4


class ParityPlanner:
    """Parity per block, from the group's usual losses.

    Attributes:
        loss: the largest usual loss of the group, 0..0.5.
        interleave_depth: blocks that are sent at the same time.
    """

    def __init__(self) -> None:
        self.loss = 0.0
        self.interleave_depth = 1
        self._levels: tuple[tuple[float, float, int], ...] = ()
        self._askers_max = _ASKERS_MAX
        self._by_k: dict[int, int] = {}

    def update(self, losses: Iterable[tuple[float, float]]) -> None:
        """Take the group's losses as they are now.

        Args:
            losses: for each receiver that counts, the share that it usually loses and how many in a row.
        """
        counts: dict[int, int] = {}
        largest, burst = 0.0, 1.0
        for loss, loss_burst in losses:
            largest = max(largest, loss)
            if loss >= _LOSS_MIN:
                level = round(math.log10(min(loss, 0.5)) * _LEVELS_PER_DECADE)
                counts[level] = counts.get(level, 0) + 1
            if loss >= _INTERLEAVE_LOSS_MIN:
                burst = max(burst, loss_burst)
        self.loss = min(0.5, largest)
        bursty = burst >= _INTERLEAVE_BURST_MIN
        self.interleave_depth = INTERLEAVE_BLOCKS if bursty else 1
        # What one event takes from one block: interleaved, at most a stripe of it.
        event_symbols = min(burst, INTERLEAVE_SYMBOLS) if bursty else max(1.0, burst)
        levels = tuple(
            (10 ** (level / _LEVELS_PER_DECADE), event_symbols, count)
            for level, count in sorted(counts.items())
        )
        if levels != self._levels:
            self._levels = levels
            lossy_count = sum(counts.values())
            self._askers_max = min(_ASKERS_MAX * lossy_count, _ASKERS_BURSTY_MAX) if bursty else _ASKERS_MAX
            self._by_k.clear()

    def symbols(self, k: int) -> int:
        """Repair symbols to send with a block of ``k`` source symbols, unasked."""
        known = self._by_k.get(k)
        if known is None:
            known = self._by_k[k] = self._least(k) if self._levels else 0
        return known

    def _least(self, k: int) -> int:
        most = min(math.ceil(k * PARITY_FRACTION_MAX), SYMBOLS_MAX - k)
        for count in range(most):
            askers = sum(
                receivers * _poisson_tail(loss * (k + count) / event, int(count / event))
                for loss, event, receivers in self._levels
            )
            if askers <= self._askers_max:
                return count
        return most


def _poisson_tail(mean: float, count: int) -> float:
    """The chance of more than ``count`` events."""
    term = total = math.exp(-mean)
    for index in range(1, count + 1):
        term *= mean / index
        total += term
    return max(0.0, 1.0 - total)
