"""How the operator wants a cast run."""

from __future__ import annotations

import dataclasses
import enum

from protocol.constants import RECEIVER_TIMEOUT_S, SLOW_BELOW_DEFAULT, SLOW_FOR_S_DEFAULT


class SlowPolicy(enum.StrEnum):
    """What becomes of a receiver that is much slower than the group."""

    WAIT = "wait"
    """Everybody goes at its pace."""
    DEMOTE = "demote"
    """The group goes on at its own pace and finishes it afterwards, at its."""
    DROP = "drop"
    """The cast goes on without it."""


@dataclasses.dataclass(frozen=True, slots=True)
class CastPolicy:
    """How the operator wants the cast run.

    Attributes:
        wait_for: receivers that must have joined before image data is sent.
        max_wait_s: start with those that are there after this time; None waits for ever.
        by_hand: image data waits for the operator's word instead of both.
        receiver_timeout_s: a receiver silent for this long is lost.
        rate_bytes_per_s: a fixed rate; None for automatic.
        rate_max_bytes_per_s: ceiling of the automatic rate; None for the program's own.
        share: leave other traffic its share of a common link, as TCP does.
        slow_policy: what becomes of stragglers.
        slow_below: a straggler's sustainable rate is below this share of the group's, 0..1.
        slow_for_s: it has been for this long before it is demoted or dropped for good.
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
