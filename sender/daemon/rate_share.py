"""Several casts under one ceiling: max-min fair shares of a common rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from protocol.constants import RATE_BYTES_PER_S_MIN
from protocol.model.cast_state import CastState

if TYPE_CHECKING:
    from sender.daemon.context import Services

_INTERVAL_S: Final = 0.5
HEADROOM: Final = 1.25
"""What a cast that something else limits gets beyond what it achieves, so that it can climb when that ends."""


def share_rate(ceiling_bytes_per_s: float, wishes_bytes_per_s: Sequence[float]) -> list[float]:
    """Divide ``ceiling_bytes_per_s``: nobody gets more than its wish while another one lacks something.

    Max-min fairness by progressive filling (Bertsekas and Gallager, Data Networks, section 6.5.2).

    Args:
        ceiling_bytes_per_s: what all may send together.
        wishes_bytes_per_s: what each could use; infinite if nobody knows.

    Returns:
        A ceiling for each, in their order; what nobody wishes for is divided evenly, so that each may climb.
    """
    shares = [0.0] * len(wishes_bytes_per_s)
    left = ceiling_bytes_per_s
    hungry = sorted(range(len(shares)), key=lambda index: wishes_bytes_per_s[index])
    while hungry:
        index = hungry.pop(0)
        shares[index] = min(wishes_bytes_per_s[index], left / (len(hungry) + 1))
        left -= shares[index]
    extra = left / max(1, len(shares))
    return [max(RATE_BYTES_PER_S_MIN, share + extra) for share in shares]


def wish_bytes_per_s(achieved_bytes_per_s: float, *, held_by_ceiling: bool) -> float:
    """What a cast could use, by what it does: without bound if only its ceiling holds it."""
    return math.inf if held_by_ceiling else HEADROOM * achieved_bytes_per_s


async def share_rates(services: Services) -> None:
    """Divide the configured ceiling between the casts that run, again and again, until cancelled."""
    supervisor = services.supervisor
    ceiling = services.config.network.rate_ceiling_bytes_per_s
    while ceiling is not None:
        sending = []
        for live in supervisor.runs.values():
            if live.run is not None and not live.cast.paused:
                with live.run.shared.read() as (session, _now):
                    wish = 0.0
                    if session.state is CastState.CASTING:
                        wish = wish_bytes_per_s(
                            session.achieved_bytes_per_s, held_by_ceiling=session.held_by_ceiling
                        )
                sending.append((live.run, wish))
        shares = share_rate(ceiling, [wish for _run, wish in sending])
        for (run, _wish), share in zip(sending, shares, strict=True):
            run.set_rate_ceiling(share)
        await supervisor.changes.wait(_INTERVAL_S)
