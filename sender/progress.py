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
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from protocol.errors import EXIT_OK
from protocol.events import (
    CastFinished,
    CastingStarted,
    GatheringTimedOut,
    ReceiverCompleted,
    ReceiverFailed,
    ReceiverJoined,
    ReceiverLost,
    ReceiverReturned,
    SenderEvent,
)
from protocol.session_records import CastParameters
from protocol.units import format_bytes, format_duration, format_rate
from sender.cast_view import CastSummary, CastView, ReceiverView

JSON_INTERVAL_S: Final = 1.0
PLAIN_INTERVAL_S: Final = 5.0
LIVE_INTERVAL_S: Final = 0.25
_HEADER_LINES: Final = 6
_BAR_COLUMNS: Final = 12
"""So that the table fits 80 columns."""

EVENT_NAMES: Final[dict[type, str]] = {
    ReceiverJoined: "receiver_joined",
    ReceiverCompleted: "receiver_completed",
    ReceiverFailed: "receiver_failed",
    ReceiverLost: "receiver_lost",
    ReceiverReturned: "receiver_returned",
    CastingStarted: "casting_started",
    GatheringTimedOut: "gathering_timed_out",
    CastFinished: "cast_ended",
}
"""The session's events by their names in JSON lines."""

_STATE_STYLES: Final = {"complete": "green", "failed": "red", "lost": "red", "joined": "yellow"}


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
        _say(f"waiting for {_receivers(introduction.wait_for)} at {introduction.parameters.control_url}")

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """Joins and ends, one a line."""
        _say(_event_words(event, receiver))

    def note(self, text: str) -> None:
        """A remark."""
        _say(f"note: {text}")

    def progress(self, view: CastView) -> None:
        """The cast in one line."""
        active = [receiver for receiver in view.receivers if receiver.active]
        line = f"{_status(view)}; {len(active)} of {_receivers(len(view.receivers))} active"
        if active and not view.gathering:
            slowest = min(active, key=lambda receiver: receiver.progress)
            line += f", slowest {slowest.name} {slowest.progress:.0%}, limited by its {slowest.limiter}"
        _say(line)

    def finished(self, summary: CastSummary) -> None:
        """A table of all receivers."""
        Console(stderr=True, width=140).print(_summary_table(summary))

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
        waiting = f"waiting for {_receivers(introduction.wait_for)} at {introduction.parameters.control_url}"
        self._live.start()
        self._live.update(Group(Text(self._title, style="bold"), Text(waiting)), refresh=True)

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """Ends that aren't good stay above the table; the rest is in it."""
        if isinstance(event, ReceiverFailed | ReceiverLost | ReceiverReturned | CastFinished):
            self._console.print(Text(_event_words(event, receiver)))

    def note(self, text: str) -> None:
        """A remark above the table."""
        self._console.print(Text(f"note: {text}", style="yellow"))

    def progress(self, view: CastView) -> None:
        """Draw the table: those that need attention first, as many as the terminal has lines for."""
        table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="dim")
        for column in ("receiver", "state", "progress", "", "writes", "loss", "NACKs", "limited by"):
            right = column in ("", "writes", "loss", "NACKs")
            table.add_column(column, justify="right" if right else "left", no_wrap=True)
        room = max(1, self._console.height - _HEADER_LINES)
        ordered = sorted(view.receivers, key=_attention)
        for receiver in ordered[:room]:
            table.add_row(*_live_row(receiver))
        parts: list[Text | Table] = [Text(self._title, style="bold"), Text(_status(view)), table]
        if len(ordered) > room:
            parts.append(Text(f"… and {_receivers(len(ordered) - room)} more"))
        self._live.update(Group(*parts), refresh=True)

    def finished(self, summary: CastSummary) -> None:
        """Close the live display and leave the summary."""
        self._live.stop()
        self._console.print(_summary_table(summary))

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


def _receivers(count: int) -> str:
    return f"{count} receiver{'' if count == 1 else 's'}"


def _headline(introduction: CastIntroduction) -> str:
    parameters = introduction.parameters
    return (
        f"casting {parameters.image_name} ({format_bytes(parameters.raw_bytes)}) to {parameters.group} port "
        f"{parameters.port} on {introduction.interface}"
    )


def _status(view: CastView) -> str:
    """``casting, 812 Mbit/s, pass 1 at 42 %, 12.3 s, 20.0 s to go``."""
    words = [view.state, format_rate(view.achieved_bytes_per_s)]
    if not view.gathering:
        words += [f"pass {view.pass_index + 1} at {view.pass_progress:.0%}", format_duration(view.elapsed_s)]
    if view.eta_s is not None:
        words.append(f"{format_duration(view.eta_s)} to go")
    return ", ".join(words)


def _event_words(event: SenderEvent, receiver: str | None) -> str:
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
        case CastingStarted():
            return "the room has gathered: image data begins"
        case GatheringTimedOut():
            return "nobody joined in time"
        case CastFinished(reason=reason):
            return f"the cast has ended: {reason}"


def _attention(receiver: ReceiverView) -> tuple[int, float]:
    """Active ones by progress, the slowest first; then those that ended badly; the complete last."""
    rank = 0 if receiver.active else 2 if receiver.state == "complete" else 1
    return rank, receiver.progress


def _live_row(receiver: ReceiverView) -> tuple[Text | ProgressBar, ...]:
    return (
        Text(receiver.name),
        Text(receiver.state, style=_STATE_STYLES.get(receiver.state, "")),
        ProgressBar(total=1.0, completed=receiver.progress, width=_BAR_COLUMNS),
        Text(f"{receiver.progress:.1%}"),
        Text(format_rate(receiver.rate_bytes_per_s)),
        Text(f"{receiver.loss:.1%}"),
        Text(str(receiver.nacks_count)),
        Text(receiver.limiter if receiver.active else receiver.error),
    )


def _summary_table(summary: CastSummary) -> Table:
    title = (
        f"{summary.image_name}: {summary.complete_count} of {_receivers(len(summary.receivers))} complete, "
        f"{format_duration(summary.seconds)}, {format_bytes(summary.bytes_sent)} sent at "
        f"{format_rate(summary.rate_bytes_per_s)}"
    )
    table = Table(
        title=Text(title),
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,
        header_style="dim",
    )
    for column in ("receiver", "state", "verified", "time", "rate", "loss", "parity", "NACKs", "error"):
        left = column in ("receiver", "state", "error")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "error")
    for receiver in summary.receivers:
        table.add_row(
            Text(receiver.name),
            Text(receiver.state, style=_STATE_STYLES.get(receiver.state, "")),
            format_bytes(receiver.bytes_verified),
            format_duration(receiver.seconds),
            format_rate(receiver.rate_bytes_per_s),
            f"{receiver.loss:.1%}",
            str(receiver.blocks_repaired_by_parity),
            str(receiver.nacks_count),
            Text(receiver.error),
        )
    return table
