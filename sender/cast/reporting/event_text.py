"""What happens in a cast, in sentences for the operator."""

from __future__ import annotations

from typing import Final

from protocol.sending.events import (
    CastFinished,
    CastingStarted,
    GatheringTimedOut,
    MainGroupFinished,
    ReceiverCompleted,
    ReceiverDemoted,
    ReceiverDropped,
    ReceiverFailed,
    ReceiverJoined,
    ReceiverLost,
    ReceiverRecovered,
    ReceiverReturned,
    ReceiverSlow,
    SenderEvent,
)
from protocol.shared.units import format_duration, format_rate
from sender.cast.reporting.bottleneck_view import part_of_receiver
from sender.cast.reporting.snapshot import CastView

EVENT_NAMES: Final[dict[type, str]] = {
    ReceiverJoined: "receiver_joined",
    ReceiverCompleted: "receiver_completed",
    ReceiverFailed: "receiver_failed",
    ReceiverLost: "receiver_lost",
    ReceiverReturned: "receiver_returned",
    ReceiverSlow: "receiver_slow",
    ReceiverRecovered: "receiver_recovered",
    ReceiverDemoted: "receiver_demoted",
    ReceiverDropped: "receiver_dropped",
    MainGroupFinished: "main_group_finished",
    CastingStarted: "casting_started",
    GatheringTimedOut: "gathering_timed_out",
    CastFinished: "cast_ended",
}
"""The session's events by their names in JSON lines."""


def count_receivers(count: int) -> str:
    """``1 receiver``, ``2 receivers``."""
    return f"{count} receiver{'' if count == 1 else 's'}"


def count_stragglers(count: int) -> str:
    """``1 straggler``, ``2 stragglers``."""
    return f"{count} straggler{'' if count == 1 else 's'}"


def status_words(view: CastView) -> str:
    """``casting, 812 Mbit/s, pass 1 at 42%, 12.3 s, 20.0 s to go``."""
    state = view.state
    if view.casting and view.main_group_seconds is not None:
        state = f"finishing {count_stragglers(sum(receiver.active for receiver in view.receivers))}"
    words = [state, format_rate(view.achieved_bytes_per_s)]
    if not view.gathering:
        words += [f"pass {view.pass_index + 1} at {view.pass_progress:.0%}", format_duration(view.elapsed_s)]
    if view.eta_s is not None:
        words.append(f"{format_duration(view.eta_s)} to go")
    return ", ".join(words)


def bottleneck_words(view: CastView) -> str:
    """``limited by pc07's disk; 1 slow, 2 in the tail``; empty unless the cast runs."""
    if not view.casting:
        return ""
    standings = [receiver.standing for receiver in view.receivers]
    marks = [
        f"{standings.count(standing)} {words}"
        for standing, words in (("slow", "slow"), ("tail", "in the tail"))
        if standing in standings
    ]
    return f"limited by {view.bottleneck.text}" + (f"; {', '.join(marks)}" if marks else "")


def event_words(event: SenderEvent, receiver: str | None) -> str:
    """The event as a sentence about ``receiver``."""
    match event:
        case ReceiverJoined(rejoined=rejoined):
            return f"{receiver} joined{' again' if rejoined else ''}"
        case ReceiverCompleted():
            return f"{receiver} is complete: every byte verified"
        case ReceiverFailed(error=error):
            return f"{receiver} failed: {error}"
        case ReceiverLost():
            return f"{receiver} is lost: nothing heard from it"
        case ReceiverReturned():
            return f"{receiver} is back"
        case ReceiverSlow() | ReceiverRecovered() | ReceiverDemoted() | ReceiverDropped():
            return f"{receiver} {_slow_words(event)}"
        case MainGroupFinished():
            return _main_group_words(event)
        case CastingStarted():
            return "the room has gathered: image data begins"
        case GatheringTimedOut():
            return "nobody joined in time"
        case CastFinished(reason=reason):
            return f"the cast has ended: {reason}"


def _slow_words(event: ReceiverSlow | ReceiverRecovered | ReceiverDemoted | ReceiverDropped) -> str:
    if isinstance(event, ReceiverRecovered):
        return "keeps up again"
    rates = (
        f"{part_of_receiver(event.cause)} takes {format_rate(event.rate_bytes_per_s)}, "
        f"the group {format_rate(event.group_rate_bytes_per_s)}"
    )
    match event:
        case ReceiverSlow():
            return f"is slow: {rates}"
        case ReceiverDemoted():
            return f"is a straggler: {rates}"
        case ReceiverDropped():
            return f"is dropped: {rates}"


def _main_group_words(event: MainGroupFinished) -> str:
    words = f"{count_receivers(event.complete_count)} complete after {format_duration(event.seconds)}"
    follow = "follows at its" if event.straggler_count == 1 else "follow at their"
    return f"{words}; {count_stragglers(event.straggler_count)} {follow} own rate"
