"""What limits a cast and who, as the operator reads it: "limited by pc07's disk"."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from protocol.constants import RATE_BYTES_PER_S_MAX
from protocol.model.bottleneck import Bottleneck, Cause
from protocol.model.cast_policy import CastPolicy
from protocol.sending.sender_session import SenderSession
from protocol.shared.units import format_rate

_RECEIVERS_PART: Final = {
    Cause.NETWORK: ("the network to {}", "the network", "its link"),
    Cause.SOCKET: ("{}'s socket", "the receivers' sockets", "its socket"),
    Cause.DECODE: ("{}'s processor", "the receivers' processors", "its processor"),
    Cause.DISK: ("{}'s disk", "the receivers' disks", "its disk"),
}
"""Of one receiver by name, of nobody in particular, of one that was just named."""
_SENDERS_PART: Final = {
    Cause.SOURCE: "reading the image",
    Cause.SENDER: "this machine's processor",
    Cause.NONE: "nothing (climbing or idle)",
}
_NAMED_MAX: Final = 4
"""Bottlenecks in one sentence; JSON lines have all."""


@dataclasses.dataclass(frozen=True, slots=True)
class BottleneckView:
    """What sets the rate.

    Attributes:
        cause: one of :class:`protocol.model.bottleneck.Cause`.
        receiver: the name of the receiver whose doing it is; None if it isn't one's.
        text: both in words, to follow "limited by".
    """

    cause: str
    receiver: str | None
    text: str

    @classmethod
    def of(cls, session: SenderSession, bottleneck: Bottleneck) -> BottleneckView:
        """``bottleneck`` with its receiver's name."""
        receiver = None
        if bottleneck.receiver_id is not None:
            receiver = session.receivers[bottleneck.receiver_id].name
        return cls(bottleneck.cause.value, receiver, _text(bottleneck.cause, receiver, session.policy))


@dataclasses.dataclass(frozen=True, slots=True)
class BottleneckTime(BottleneckView):
    """What has set the rate, and for how long altogether."""

    seconds: float

    @classmethod
    def all_of(cls, session: SenderSession) -> tuple[BottleneckTime, ...]:
        """The bottlenecks of the cast so far, the longest first."""
        views = [
            (BottleneckView.of(session, bottleneck), seconds)
            for bottleneck, seconds in session.bottleneck_seconds.items()
        ]
        times = [cls(view.cause, view.receiver, view.text, round(seconds, 3)) for view, seconds in views]
        return tuple(sorted(times, key=lambda time: -time.seconds))


def bottlenecks_text(times: Sequence[BottleneckTime]) -> str:
    """``limited 92% of the time by the network to pc03, 5% by pc07's disk``; empty if nothing is known.

    Args:
        times: the longest first. Those of less than a per cent, and those after the fourth, are left out.
    """
    total_s = sum(time.seconds for time in times)
    shares = [(time.seconds / total_s, time.text) for time in times if time.seconds >= 0.01 * total_s > 0]
    return ", ".join(
        f"{share:.0%} by {text}" if index else f"limited {share:.0%} of the time by {text}"
        for index, (share, text) in enumerate(shares[:_NAMED_MAX])
    )


def part_of_receiver(cause: str) -> str:
    """What of a receiver that was just named a cause is: ``its disk``."""
    return _RECEIVERS_PART[Cause(cause)][2]


def _text(cause: Cause, receiver: str | None, policy: CastPolicy) -> str:
    if cause in _RECEIVERS_PART:
        of_one, of_nobody, _of_it = _RECEIVERS_PART[cause]
        return of_nobody if receiver is None else of_one.format(receiver)
    if cause in _SENDERS_PART:
        return _SENDERS_PART[cause]
    if policy.rate_bytes_per_s is not None:
        return "--rate"
    if policy.rate_max_bytes_per_s is not None:
        return "--max-rate"
    return f"diskcast's own ceiling of {format_rate(RATE_BYTES_PER_S_MAX)}"
