"""Several casts under one ceiling: max-min fair shares of a common rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from protocol.constants import RATE_BYTES_PER_S_MIN
from protocol.model.cast_state import CastState
from sender.daemon.jobs.cast_registry import CastRegistry

_INTERVAL_S: Final = 0.5
HEADROOM: Final = 1.25
"""Headroom of a cast with another bottleneck, so that its rate can climb when that bottleneck ends."""


def share_rate(ceiling_bytes_per_s: float, demands_bytes_per_s: Sequence[float]) -> list[float]:
    """Divide ``ceiling_bytes_per_s``: no cast gets more than its demand while another one gets less than its own.

    Max-min fairness by progressive filling (Bertsekas and Gallager, Data Networks, section 6.5.2).

    Args:
        ceiling_bytes_per_s: rate of all casts together.
        demands_bytes_per_s: rate that each cast could use; infinite if unknown.

    Returns:
        A ceiling for each, in their order; the rest is divided evenly, so that each may climb.
    """
    shares = [0.0] * len(demands_bytes_per_s)
    left = ceiling_bytes_per_s
    unsatisfied = sorted(range(len(shares)), key=lambda index: demands_bytes_per_s[index])
    while unsatisfied:
        index = unsatisfied.pop(0)
        shares[index] = min(demands_bytes_per_s[index], left / (len(unsatisfied) + 1))
        left -= shares[index]
    extra = left / max(1, len(shares))
    return [max(RATE_BYTES_PER_S_MIN, share + extra) for share in shares]


def demand_bytes_per_s(achieved_bytes_per_s: float, *, held_by_ceiling: bool) -> float:
    """Return the rate that a cast could use: infinite if only its ceiling limits it."""
    return math.inf if held_by_ceiling else HEADROOM * achieved_bytes_per_s


async def share_rates(registry: CastRegistry, ceiling_bytes_per_s: float | None) -> None:
    """Divide the ceiling between the running casts, twice a second, until cancelled; return if there is none."""
    while ceiling_bytes_per_s is not None:
        sending = []
        for job in registry.jobs.values():
            if job.run is not None and not job.cast.paused:
                with job.run.locked_session.read() as (session, _now):
                    demand = 0.0
                    if session.state is CastState.CASTING:
                        demand = demand_bytes_per_s(
                            session.achieved_bytes_per_s, held_by_ceiling=session.held_by_ceiling
                        )
                sending.append((job.run, demand))
        shares = share_rate(ceiling_bytes_per_s, [demand for _run, demand in sending])
        for (run, _demand), share in zip(sending, shares, strict=True):
            run.set_rate_ceiling(share)
        await registry.changes.wait(_INTERVAL_S)
