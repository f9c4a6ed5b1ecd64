"""Describe the events and the state of a cast in sentences for the operator."""

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
from sender.cast.reporting.bottleneck_view import receiver_cause_text
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
"""Names of the session's events in JSON lines."""


def count_receivers(count: int) -> str:
    """Return ``1 receiver``, ``2 receivers`` and so on."""
    return f"{count} receiver{'' if count == 1 else 's'}"


def count_stragglers(count: int) -> str:
    """Return ``1 straggler``, ``2 stragglers`` and so on."""
    return f"{count} straggler{'' if count == 1 else 's'}"


def status_text(view: CastView) -> str:
    """Return such as ``casting, 812 Mbit/s, pass 1 at 42%, 12.3 s, ETA 20.0 s``."""
    state = view.state
    if view.casting and view.main_group_seconds is not None:
        state = f"finishing {count_stragglers(sum(receiver.active for receiver in view.receivers))}"
    parts = [state, format_rate(view.achieved_bytes_per_s)]
    if not view.gathering:
        parts += [f"pass {view.pass_index + 1} at {view.pass_progress:.0%}", format_duration(view.elapsed_s)]
    if view.eta_s is not None:
        parts.append(f"ETA {format_duration(view.eta_s)}")
    return ", ".join(parts)


def bottleneck_text(view: CastView) -> str:
    """Return such as ``bottleneck: pc07's disk; 1 slow, 2 in the tail``; empty unless data flows."""
    if not view.casting:
        return ""
    standings = [receiver.standing for receiver in view.receivers]
    marks = [
        f"{standings.count(standing)} {text}"
        for standing, text in (("slow", "slow"), ("tail", "in the tail"))
        if standing in standings
    ]
    return f"bottleneck: {view.bottleneck.text}" + (f"; {', '.join(marks)}" if marks else "")


def event_text(event: SenderEvent, receiver: str | None) -> str:
    """Return the event as a sentence about ``receiver``."""
    match event:
        case ReceiverJoined(rejoined=rejoined):
            return f"{receiver} joined{' again' if rejoined else ''}"
        case ReceiverCompleted():
            return f"{receiver} is complete: every byte verified"
        case ReceiverFailed(error=error):
            return f"{receiver} failed: {error}"
        case ReceiverLost():
            return f"{receiver} is lost: it stopped sending reports"
        case ReceiverReturned():
            return f"{receiver} is back"
        case ReceiverSlow() | ReceiverRecovered() | ReceiverDemoted() | ReceiverDropped():
            return f"{receiver} {_slow_text(event)}"
        case MainGroupFinished():
            return _main_group_text(event)
        case CastingStarted():
            return "the room has gathered: casting starts"
        case GatheringTimedOut():
            return "no receiver joined in time"
        case CastFinished(reason=reason):
            return f"the cast ended: {reason}"


def _slow_text(event: ReceiverSlow | ReceiverRecovered | ReceiverDemoted | ReceiverDropped) -> str:
    if isinstance(event, ReceiverRecovered):
        return "keeps up again"
    rates = (
        f"{receiver_cause_text(event.cause)} takes {format_rate(event.rate_bytes_per_s)}, "
        f"the group {format_rate(event.group_rate_bytes_per_s)}"
    )
    match event:
        case ReceiverSlow():
            return f"is slow: {rates}"
        case ReceiverDemoted():
            return f"is a straggler: {rates}"
        case ReceiverDropped():
            return f"is dropped: {rates}"


def _main_group_text(event: MainGroupFinished) -> str:
    complete = f"{count_receivers(event.complete_count)} complete after {format_duration(event.seconds)}"
    verb = "follows at its" if event.straggler_count == 1 else "follow at their"
    return f"{complete}; {count_stragglers(event.straggler_count)} {verb} own rate"
