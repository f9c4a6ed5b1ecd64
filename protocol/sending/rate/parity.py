"""Proactive parity: repair symbols that are sent before any NACK, and interleaving against bursts of loss.

A block of n symbols meets about ``p n / c`` loss events of c symbols each, Poisson distributed. From that follows each
receiver's chance of losing more than the parity repairs. Parity is the least with which few receivers, of the whole
group, have to send a NACK for a block: none on a clean network, some for a large group with little loss.
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

_NACKS_PER_BLOCK_MAX: Final = 0.4
"""Mean number of NACKs per block that parity leaves: fewer would cost the group more parity than the repairs cost."""
_NACKS_PER_BLOCK_BURSTY_MAX: Final = 1.0
"""Against bursts parity comes in whole stripes, and a group rarely gains from the last one."""
_LOSS_MIN: Final = 0.0005
"""Losses fade and never end: smaller ones of 1000 receivers would be a new plan every 100 ms, for 12 % of a core."""
_LEVELS_PER_DECADE: Final = 20
"""Losses that differ by less than 12 % count as one, so that 1000 receivers cost no more than a few."""
_INTERLEAVE_LOSS_MIN: Final = 0.004
"""Rarer bursts are cheaper to repair than to interleave against, which costs processor time and buffers."""
_INTERLEAVE_BURST_MIN: Final = BURST_SYMBOLS / 4
"""Mean length of bursts from which on whole super-datagrams are lost."""


class ParityPlanner:
    """Parity per block, derived from the group's usual losses.

    Attributes:
        loss: largest usual loss in the group, 0..0.5.
        interleave_depth: blocks that are sent together.
    """

    def __init__(self) -> None:
        self.loss = 0.0
        self.interleave_depth = 1
        self._levels: tuple[tuple[float, float, int], ...] = ()
        self._nacks_per_block_max = _NACKS_PER_BLOCK_MAX
        self._by_k: dict[int, int] = {}

    def update(self, losses: Iterable[tuple[float, float]]) -> None:
        """Use the group's present losses.

        Args:
            losses: usual loss and mean length of a loss burst of each receiver that counts.
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
        # With interleaving, one event takes at most a stripe of a block.
        event_symbols = min(burst, INTERLEAVE_SYMBOLS) if bursty else max(1.0, burst)
        levels = tuple(
            (10 ** (level / _LEVELS_PER_DECADE), event_symbols, count)
            for level, count in sorted(counts.items())
        )
        if levels != self._levels:
            self._levels = levels
            lossy_count = sum(counts.values())
            self._nacks_per_block_max = (
                min(_NACKS_PER_BLOCK_MAX * lossy_count, _NACKS_PER_BLOCK_BURSTY_MAX)
                if bursty
                else _NACKS_PER_BLOCK_MAX
            )
            self._by_k.clear()

    def symbols(self, k: int) -> int:
        """Return the number of repair symbols to send with a block of ``k`` source symbols."""
        known = self._by_k.get(k)
        if known is None:
            known = self._by_k[k] = self._least_parity(k) if self._levels else 0
        return known

    def _least_parity(self, k: int) -> int:
        most = min(math.ceil(k * PARITY_FRACTION_MAX), SYMBOLS_MAX - k)
        for count in range(most):
            nacks = sum(
                receivers * _poisson_tail(loss * (k + count) / event, int(count / event))
                for loss, event, receivers in self._levels
            )
            if nacks <= self._nacks_per_block_max:
                return count
        return most


def _poisson_tail(mean: float, count: int) -> float:
    """Return the probability of more than ``count`` events."""
    term = total = math.exp(-mean)
    for index in range(1, count + 1):
        term *= mean / index
        total += term
    return max(0.0, 1.0 - total)
