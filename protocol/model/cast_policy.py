"""The operator's policy for a cast: start conditions, rate and stragglers."""

from __future__ import annotations

import dataclasses
import enum

from protocol.constants import RECEIVER_TIMEOUT_S, SLOW_BELOW_DEFAULT, SLOW_FOR_S_DEFAULT


class SlowPolicy(enum.StrEnum):
    """Treatment of a receiver that is much slower than the group."""

    WAIT = "wait"
    """The group slows down to its rate."""
    DEMOTE = "demote"
    """The group keeps its own rate; the receiver is finished afterwards, at its own."""
    DROP = "drop"
    """The cast continues without it."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastPolicy:
    """The operator's policy for a cast.

    Attributes:
        wait_for: receivers that must have joined before image data is sent.
        max_wait_s: time after which the cast starts with the receivers that have joined; None for no limit.
        by_hand: image data waits for the operator's start command instead of both.
        receiver_timeout_s: silence after which a receiver is lost.
        rate_bytes_per_s: a fixed rate; None for automatic.
        rate_max_bytes_per_s: ceiling of the automatic rate; None for the program's own.
        share: leave other traffic its share of a common link, as TCP does.
        slow_policy: treatment of stragglers.
        slow_below: a straggler's sustainable rate is below this share of the group's, 0..1.
        slow_for_s: time that it has been slow before it is demoted or dropped.
    """

    wait_for: int = 1
    max_wait_s: float | None = None
    by_hand: bool = False
    receiver_timeout_s: float = RECEIVER_TIMEOUT_S
    rate_bytes_per_s: float | None = None
    rate_max_bytes_per_s: float | None = None
    share: bool = False
    slow_policy: SlowPolicy = SlowPolicy.DEMOTE
    slow_below: float = SLOW_BELOW_DEFAULT
    slow_for_s: float = SLOW_FOR_S_DEFAULT
