"""What the operator sees of a cast: a live table on a terminal, lines in a log, JSON lines for scripts."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from typing import Final, Protocol

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from protocol.errors import EXIT_OK
from protocol.model.session_records import CastParameters
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
from protocol.shared.units import format_bytes, format_duration, format_rate
from sender.cast.bottleneck_view import bottlenecks_text
from sender.cast.event_text import (
    bottleneck_words,
    count_receivers,
    count_stragglers,
    event_words,
    status_words,
)
from sender.cast.machine_table import STANDING_STYLES, machine_table
from sender.cast.snapshot import CastSummary, CastView, ReceiverSummary

JSON_INTERVAL_S: Final = 1.0
PLAIN_INTERVAL_S: Final = 5.0
LIVE_INTERVAL_S: Final = 0.25
_HEADER_LINES: Final = 7

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

_SAID_ABOVE_TABLE: Final = (
    ReceiverFailed,
    ReceiverLost,
    ReceiverReturned,
    ReceiverDemoted,
    ReceiverDropped,
    MainGroupFinished,
    CastFinished,
)


@dataclasses.dataclass(frozen=True, slots=True)
class CastIntroduction:
    """What is known when a cast begins to gather."""

    parameters: CastParameters
    interface: str
    wait_for: int
    send_mode: str
    metrics_port: int | None


class Reporter(Protocol):
    """Where a cast tells how it goes; called from the event loop only."""

    interval_s: float
    """How often it wants :meth:`progress`."""

    def started(self, introduction: CastIntroduction) -> None:
        """The cast gathers its room."""

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """The session's event, and the name of the receiver that it is about."""

    def note(self, text: str) -> None:
        """Something that the operator should know and that doesn't end the cast."""

    def progress(self, view: CastView) -> None:
        """The cast now."""

    def finished(self, summary: CastSummary) -> None:
        """The cast has ended, well or not."""

    def close(self) -> None:
        """Give the terminal back, whatever happened."""


def choose_reporter(*, json_lines: bool) -> Reporter:
    """By what stderr is, and what the operator asked for."""
    if json_lines:
        return JsonReporter()
    return LiveReporter() if sys.stderr.isatty() else PlainReporter()


class JsonReporter:
    """One JSON object a line on stdout. The result line is left to whoever knows the exit code."""

    interval_s = JSON_INTERVAL_S

    def started(self, introduction: CastIntroduction) -> None:
        """``cast_started``: what a script needs to send agents here."""
        parameters = introduction.parameters
        _emit(
            "cast_started",
            cast_id=f"{parameters.cast_id:08x}",
            incarnation=parameters.incarnation,
            image_name=parameters.image_name,
            image_id=parameters.image_id.hex(),
            raw_bytes=parameters.raw_bytes,
            block_bytes=parameters.block_bytes,
            symbol_bytes=parameters.symbol_bytes,
            interface=introduction.interface,
            group=parameters.group,
            port=parameters.port,
            sender_address=parameters.sender_address,
            control_url=parameters.control_url,
            wait_for=introduction.wait_for,
            send_mode=introduction.send_mode,
            metrics_port=introduction.metrics_port,
        )

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """The event by its name, with its own fields."""
        fields = {key: value for key, value in dataclasses.asdict(event).items() if key != "receiver_id"}
        if receiver is not None:
            fields = {"receiver": receiver, **fields}
        _emit(EVENT_NAMES[type(event)], **fields)

    def note(self, text: str) -> None:
        """``note``."""
        _emit("note", text=text)

    def progress(self, view: CastView) -> None:
        """``progress``: everything that the live table shows."""
        _emit("progress", **dataclasses.asdict(view))

    def finished(self, summary: CastSummary) -> None:
        """Nothing: the result line says it."""

    def close(self) -> None:
        """Nothing to give back."""


class PlainReporter:
    """Lines on stderr: for logs."""

    interval_s = PLAIN_INTERVAL_S

    def started(self, introduction: CastIntroduction) -> None:
        """Where agents can join."""
        _say(_headline(introduction))
        _say(f"waiting for {count_receivers(introduction.wait_for)} at {introduction.parameters.control_url}")

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """Joins and ends, one a line."""
        _say(event_words(event, receiver))

    def note(self, text: str) -> None:
        """A remark."""
        _say(f"note: {text}")

    def progress(self, view: CastView) -> None:
        """The cast in one line."""
        active = [receiver for receiver in view.receivers if receiver.active]
        parts = [status_words(view), f"{len(active)} of {count_receivers(len(view.receivers))} active"]
        if active and not view.gathering:
            slowest = min(active, key=lambda receiver: receiver.progress)
            parts[-1] += f", slowest {slowest.name} {slowest.progress:.0%}"
        _say("; ".join([*parts, bottleneck_words(view)] if view.casting else parts))

    def finished(self, summary: CastSummary) -> None:
        """A table of all receivers."""
        Console(stderr=True, width=140).print(_summary(summary))

    def close(self) -> None:
        """Nothing to give back."""


class LiveReporter:
    """A table on the terminal that is drawn again a few times a second."""

    interval_s = LIVE_INTERVAL_S

    def __init__(self, console: Console | None = None) -> None:
        """Draw on ``console``, by default on stderr."""
        self._console = console or Console(stderr=True)
        # Refreshed by us only: rich's own thread would take processor time from the transmitter.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._title = ""

    def started(self, introduction: CastIntroduction) -> None:
        """Open the live display."""
        self._title = _headline(introduction)
        waiting = (
            f"waiting for {count_receivers(introduction.wait_for)} at {introduction.parameters.control_url}"
        )
        self._live.start()
        self._live.update(Group(Text(self._title, style="bold"), Text(waiting)), refresh=True)

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """Ends that aren't good and what becomes of stragglers stay above the table; the rest is in it."""
        if isinstance(event, _SAID_ABOVE_TABLE):
            self._console.print(Text(event_words(event, receiver)))

    def note(self, text: str) -> None:
        """A remark above the table."""
        self._console.print(Text(f"note: {text}", style="yellow"))

    def progress(self, view: CastView) -> None:
        """Draw the table: those that need attention first, as many as the terminal has lines for."""
        room = max(1, self._console.height - _HEADER_LINES)
        parts: list[Text | Table] = [Text(self._title, style="bold"), Text(status_words(view))]
        if view.casting:
            parts.append(Text(bottleneck_words(view)))
        parts.append(machine_table(view.receivers, room))
        if len(view.receivers) > room:
            parts.append(Text(f"… and {count_receivers(len(view.receivers) - room)} more"))
        self._live.update(Group(*parts), refresh=True)

    def finished(self, summary: CastSummary) -> None:
        """Close the live display and leave the summary."""
        self._live.stop()
        self._console.print(_summary(summary))

    def close(self) -> None:
        """Show the cursor again."""
        self._live.stop()


class ProgressClock:
    """Says when it is time for :meth:`Reporter.progress` again."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next_at = -math.inf

    def due(self) -> bool:
        """True at most once an interval."""
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + self._interval_s
        return True


def emit_result(summary: CastSummary, *, exit_code: int) -> None:
    """The last JSON line of a cast that went well or was cancelled; an error's is written where errors end."""
    cancelled: dict[str, object] = {}
    if exit_code != EXIT_OK:
        cancelled = {"error": summary.reason, "error_class": "KeyboardInterrupt"}
    _emit("result", ok=exit_code == EXIT_OK, exit_code=exit_code, **cancelled, **dataclasses.asdict(summary))


def _emit(event: str, **fields: object) -> None:
    click.echo(json.dumps({"event": event, **fields}))


def _say(line: str) -> None:
    click.echo(line, err=True)


def _headline(introduction: CastIntroduction) -> str:
    parameters = introduction.parameters
    return (
        f"casting {parameters.image_name} ({format_bytes(parameters.raw_bytes)}) to {parameters.group} port "
        f"{parameters.port} on {introduction.interface}"
    )


def _summary(summary: CastSummary) -> Group:
    title = (
        f"{summary.image_name}: {summary.complete_count} of {count_receivers(len(summary.receivers))} complete, "
        f"{format_duration(summary.seconds)}, {format_bytes(summary.bytes_sent)} sent at "
        f"{format_rate(summary.rate_bytes_per_s)}"
    )
    lines = [title]
    straggler_count = sum(receiver.demoted for receiver in summary.receivers)
    if straggler_count and summary.main_group_seconds is not None:
        ended_after = format_duration(summary.main_group_seconds)
        lines.append(f"{count_stragglers(straggler_count)}; all others ended after {ended_after}")
    lines.append(bottlenecks_text(summary.bottleneck_seconds))
    errors = [f"{receiver.name}: {receiver.error}" for receiver in summary.receivers if receiver.error]
    return Group(
        *(Text(line) for line in lines if line),
        _summary_table(summary.receivers),
        *(Text(error, style="red") for error in errors),
    )


def _summary_table(receivers: tuple[ReceiverSummary, ...]) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="dim")
    # What is rare has a column only where it happened.
    some_kept = any(receiver.bytes_kept for receiver in receivers)
    some_rewritten = any(receiver.blocks_rewritten for receiver in receivers)
    columns = ["receiver", "state", "verified", *(["kept"] if some_kept else [])]
    columns += ["time", "rate", "loss", "parity", "NACKs", *(["rewritten"] if some_rewritten else [])]
    for column in columns:
        left = column in ("receiver", "state")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "receiver")
    for receiver in receivers:
        table.add_row(
            Text(receiver.name),
            Text(
                f"{receiver.state}, tail" if receiver.demoted else receiver.state,
                style=STANDING_STYLES.get(receiver.state, ""),
            ),
            format_bytes(receiver.bytes_verified),
            *([format_bytes(receiver.bytes_kept)] if some_kept else []),
            format_duration(receiver.seconds),
            format_rate(receiver.rate_bytes_per_s),
            f"{receiver.loss:.1%}",
            str(receiver.blocks_repaired_by_parity),
            str(receiver.nacks_count),
            *([str(receiver.blocks_rewritten)] if some_rewritten else []),
        )
    return table
