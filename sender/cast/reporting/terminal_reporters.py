"""Report a cast to the operator: a live table on a terminal, lines in a log."""

from __future__ import annotations

import sys
from typing import Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from protocol.sending.events import (
    CastFinished,
    MainGroupFinished,
    ReceiverDemoted,
    ReceiverDropped,
    ReceiverFailed,
    ReceiverLost,
    ReceiverReturned,
    SenderEvent,
)
from protocol.shared.units import format_bytes, format_duration, format_rate
from sender.cast.reporting.bottleneck_view import bottlenecks_text
from sender.cast.reporting.event_text import (
    bottleneck_text,
    count_receivers,
    count_stragglers,
    event_text,
    status_text,
)
from sender.cast.reporting.json_reporter import JsonReporter
from sender.cast.reporting.machine_table import STANDING_STYLES, machine_table
from sender.cast.reporting.reporter import LIVE_INTERVAL_S, PLAIN_INTERVAL_S, CastIntroduction, Reporter
from sender.cast.reporting.snapshot import CastSummary, CastView, ReceiverSummary

_HEADER_LINES: Final = 7

_EVENTS_ABOVE_TABLE: Final = (
    ReceiverFailed,
    ReceiverLost,
    ReceiverReturned,
    ReceiverDemoted,
    ReceiverDropped,
    MainGroupFinished,
    CastFinished,
)


def choose_reporter(*, json_lines: bool) -> Reporter:
    """Return JSON lines if requested, a live table on a terminal, and plain lines otherwise."""
    if json_lines:
        return JsonReporter()
    return LiveReporter() if sys.stderr.isatty() else PlainReporter()


class PlainReporter:
    """A reporter that writes lines to stderr, for logs."""

    interval_s = PLAIN_INTERVAL_S

    def started(self, introduction: CastIntroduction) -> None:
        """Print the headline and the command for the machines."""
        for line in (_headline(introduction), _waiting(introduction), *_admission_lines(introduction)):
            _print(line)

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """Print the event as a line."""
        _print(event_text(event, receiver))

    def note(self, text: str) -> None:
        """Print the note."""
        _print(f"note: {text}")

    def progress(self, view: CastView) -> None:
        """Print the state of the cast as a line."""
        active = [receiver for receiver in view.receivers if receiver.active]
        parts = [status_text(view), f"{len(active)} of {count_receivers(len(view.receivers))} active"]
        if active and not view.gathering:
            slowest = min(active, key=lambda receiver: receiver.progress)
            parts[-1] += f", slowest {slowest.name} {slowest.progress:.0%}"
        _print("; ".join([*parts, bottleneck_text(view)] if view.casting else parts))

    def finished(self, summary: CastSummary) -> None:
        """Print the summary with all receivers."""
        Console(stderr=True, width=140).print(_summary(summary))

    def close(self) -> None:
        """Do nothing: lines need no clean-up."""


class LiveReporter:
    """A reporter that redraws a table on the terminal a few times a second."""

    interval_s = LIVE_INTERVAL_S

    def __init__(self, console: Console | None = None) -> None:
        """Draw on ``console``, by default on stderr."""
        self._console = console or Console(stderr=True)
        # Only `progress` refreshes: rich's own thread would take processor time from the transmitter.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._title = ""

    def started(self, introduction: CastIntroduction) -> None:
        """Print the command for the machines, and open the live display below it."""
        self._title = _headline(introduction)
        for line in _admission_lines(introduction):
            self._console.print(Text(line), soft_wrap=True)  # unwrapped, so that it can be copied
        self._live.start()
        self._live.update(Group(Text(self._title, style="bold"), Text(_waiting(introduction))), refresh=True)

    def happened(self, event: SenderEvent, receiver: str | None) -> None:
        """Print failures and events of stragglers above the table; the table shows all others."""
        if isinstance(event, _EVENTS_ABOVE_TABLE):
            self._console.print(Text(event_text(event, receiver)))

    def note(self, text: str) -> None:
        """Print the note above the table."""
        self._console.print(Text(f"note: {text}", style="yellow"))

    def progress(self, view: CastView) -> None:
        """Draw the table, as many machines as the terminal has lines for."""
        room = max(1, self._console.height - _HEADER_LINES)
        parts: list[Text | Table] = [Text(self._title, style="bold"), Text(status_text(view))]
        if view.casting:
            parts.append(Text(bottleneck_text(view)))
        parts.append(machine_table(view.receivers, room))
        if len(view.receivers) > room:
            parts.append(Text(f"… and {count_receivers(len(view.receivers) - room)} more"))
        self._live.update(Group(*parts), refresh=True)

    def finished(self, summary: CastSummary) -> None:
        """Replace the live display by the summary."""
        self._live.stop()
        self._console.print(_summary(summary))

    def close(self) -> None:
        """Stop the live display and show the cursor."""
        self._live.stop()


def _print(line: str) -> None:
    click.echo(line, err=True)


def _headline(introduction: CastIntroduction) -> str:
    parameters = introduction.parameters
    return (
        f"casting {parameters.image_name} ({format_bytes(parameters.raw_bytes)}) to {parameters.group} port "
        f"{parameters.port} on {introduction.interface}"
    )


def _waiting(introduction: CastIntroduction) -> str:
    return f"waiting for {count_receivers(introduction.wait_for)} at {introduction.parameters.control_url}"


def _admission_lines(introduction: CastIntroduction) -> list[str]:
    """Return the lines that say how machines join."""
    lines = ["on each machine, with its disk and its interface:", f"  {introduction.receive_command}"]
    if introduction.join_code:
        return lines
    note = (
        "note: this cast is open: every machine on the network may join and read the image, and machines can't "
        "recognise the sender"
    )
    return [note, *lines]


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
    # Rare values get a column only if they occurred.
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
