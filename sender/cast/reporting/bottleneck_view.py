"""Describe the bottleneck of a cast for the operator: ``bottleneck: pc07's disk``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from protocol.constants import RATE_BYTES_PER_S_MAX
from protocol.model.bottleneck import Bottleneck, Cause
from protocol.model.cast_policy import CastPolicy
from protocol.sending.sender_session import SenderSession
from protocol.shared.units import format_rate

_RECEIVER_TEXTS: Final = {
    Cause.NETWORK: ("the network to {}", "the network", "its network link"),
    Cause.SOCKET: ("{}'s socket", "the receivers' sockets", "its processor (socket queue)"),
    Cause.DECODE: ("{}'s processor", "the receivers' processors", "its processor"),
    Cause.DISK: ("{}'s disk", "the receivers' disks", "its disk"),
}
"""Texts for a named receiver, for receivers in general, and for a receiver that was just named."""
_SENDER_TEXTS: Final = {
    Cause.SOURCE: "reading the image",
    Cause.SENDER: "this machine's processor",
    Cause.NONE: "nothing (climbing or idle)",
}
_NAMED_MAX: Final = 4
"""Most bottlenecks in one sentence; JSON lines have all of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class BottleneckView:
    """The bottleneck of a cast.

    Attributes:
        cause: one of :class:`protocol.model.bottleneck.Cause`.
        receiver: name of the receiver that causes it; None if no single one does.
        text: cause and receiver in words, such as ``pc07's disk``.
    """

    cause: str
    receiver: str | None
    text: str

    @classmethod
    def of(cls, session: SenderSession, bottleneck: Bottleneck) -> BottleneckView:
        """Return ``bottleneck`` with its receiver's name."""
        receiver = None
        if bottleneck.receiver_id is not None:
            receiver = session.receivers[bottleneck.receiver_id].name
        return cls(bottleneck.cause.value, receiver, _text(bottleneck.cause, receiver, session))


@dataclasses.dataclass(frozen=True, slots=True)
class BottleneckTime(BottleneckView):
    """A bottleneck and its total time."""

    seconds: float

    @classmethod
    def all_of(cls, session: SenderSession) -> tuple[BottleneckTime, ...]:
        """Return the bottlenecks of the cast so far, the longest first."""
        views = [
            (BottleneckView.of(session, bottleneck), seconds)
            for bottleneck, seconds in session.bottleneck_seconds.items()
        ]
        times = [cls(view.cause, view.receiver, view.text, round(seconds, 3)) for view, seconds in views]
        return tuple(sorted(times, key=lambda time: -time.seconds))


def bottlenecks_text(times: Sequence[BottleneckTime]) -> str:
    """Return such as ``bottlenecks: the network to pc03 92%, pc07's disk 5%``, shares of the time; empty without any.

    Args:
        times: the longest first. Shares below one per cent, and those after the fourth, are left out.
    """
    total_s = sum(time.seconds for time in times)
    shares = [(time.seconds / total_s, time.text) for time in times if time.seconds >= 0.01 * total_s > 0]
    if not shares:
        return ""
    return "bottlenecks: " + ", ".join(f"{text} {share:.0%}" for share, text in shares[:_NAMED_MAX])


def receiver_cause_text(cause: str) -> str:
    """Return the text of a cause at a receiver that was just named, such as ``its disk``."""
    return _RECEIVER_TEXTS[Cause(cause)][2]


def _text(cause: Cause, receiver: str | None, session: SenderSession) -> str:
    if cause in _RECEIVER_TEXTS:
        named, general, _pronoun = _RECEIVER_TEXTS[cause]
        return general if receiver is None else named.format(receiver)
    if cause in _SENDER_TEXTS:
        return _SENDER_TEXTS[cause]
    return _ceiling_text(session.policy, session.rate_control.maximum_bytes_per_s)


def _ceiling_text(policy: CastPolicy, maximum_bytes_per_s: float) -> str:
    """Return the limit that is in effect: the daemon's, if it is below the policy's own and the program's."""
    own_bytes_per_s = policy.rate_bytes_per_s or policy.rate_max_bytes_per_s or RATE_BYTES_PER_S_MAX
    if maximum_bytes_per_s < min(own_bytes_per_s, RATE_BYTES_PER_S_MAX):
        return "the daemon's rate_ceiling"
    if policy.rate_bytes_per_s is not None:
        return "--rate"
    if policy.rate_max_bytes_per_s is not None:
        return "--max-rate"
    return f"diskcast's own ceiling of {format_rate(RATE_BYTES_PER_S_MAX)}"
