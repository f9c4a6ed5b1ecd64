"""Search for the best rate that an operator could have set by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

STEP: Final = 1.3
"""Ratio of neighbouring rates: at half a step the time differs by less than the bound of 1.3 forgives."""
MEASURED_MAX: Final = 6


def best_fixed_rate(seconds_at: Callable[[float], float], start_mbit_per_s: float) -> tuple[float, float]:
    """Return the least time, and its rate in Mbit/s.

    Args:
        seconds_at: measures a cast at a rate in Mbit/s.
        start_mbit_per_s: rate near which to look: the automatic rate's.
    """
    measured: dict[int, float] = {}

    def seconds(step: int) -> float:
        if step not in measured:
            measured[step] = seconds_at(start_mbit_per_s * STEP**step)
        return measured[step]

    best, direction = 0, 1
    while len(measured) < MEASURED_MAX:
        if seconds(best + direction) < seconds(best):
            best += direction
        elif direction == 1 and best == 0:
            direction = -1
        else:
            break
    best = min(measured, key=lambda step: measured[step])
    return measured[best], start_mbit_per_s * STEP**best
