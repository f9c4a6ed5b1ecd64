"""Progress of work on a disk: bars or text on stderr for people, JSON lines on stdout for programs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

import click

from protocol.shared.units import format_bytes
from receiver.shared.line_pace import LinePace

_JSON_INTERVAL_S: Final = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """A block of a target that differs from the image."""

    block: int
    offset_bytes: int
    length_bytes: int


def _write_line(text: str) -> None:
    click.echo(text, err=True)


class DiskProgress(Protocol):
    """The progress display of a command that works on a disk; a context manager around the work."""

    def __enter__(self) -> Self:
        """Start showing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop showing."""

    def start_phase(self, phase: str, total_bytes: int) -> None:
        """Start the next phase."""

    def advance(self, done_bytes: int) -> None:
        """Show the progress of the phase."""

    def differences(self, count: int, first: Sequence[Difference]) -> None:
        """Show the number of differing blocks and the first of them."""

    def result(self, fields: dict[str, object], text: str) -> None:
        """Show the successful result: ``fields`` for programs, ``text`` for people."""


class JsonProgress(DiskProgress):
    """JSON lines on stdout; progress at most twice a second, and at the end of each phase."""

    def __init__(self) -> None:
        self._phase = ""
        self._total_bytes = 0
        self._next_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing."""

    def start_phase(self, phase: str, total_bytes: int) -> None:  # noqa: D102
        self._phase, self._total_bytes, self._next_s = phase, total_bytes, 0.0

    def advance(self, done_bytes: int) -> None:  # noqa: D102
        now = time.monotonic()
        if now >= self._next_s or done_bytes == self._total_bytes:
            self._next_s = now + _JSON_INTERVAL_S
            _print_line("progress", phase=self._phase, done_bytes=done_bytes, total_bytes=self._total_bytes)

    def differences(self, count: int, first: Sequence[Difference]) -> None:  # noqa: D102
        _print_line("differences", count=count, first=[dataclasses.asdict(one) for one in first])

    def result(self, fields: dict[str, object], text: str) -> None:  # noqa: D102
        _print_line("result", ok=True, **fields)


class TextProgress(DiskProgress):
    """The outcome as text on stderr, without progress, for logs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do nothing."""

    def start_phase(self, phase: str, total_bytes: int) -> None:
        """Do nothing."""

    def advance(self, done_bytes: int) -> None:
        """Do nothing."""

    def differences(self, count: int, first: Sequence[Difference]) -> None:  # noqa: D102
        for one in first:
            length = format_bytes(one.length_bytes)
            click.echo(f"block {one.block} differs: {length} at byte {one.offset_bytes}", err=True)
        if count > len(first):
            click.echo(f"… and {count - len(first)} more", err=True)

    def result(self, fields: dict[str, object], text: str) -> None:  # noqa: D102
        click.echo(text, err=True)


class LineProgress(TextProgress):
    """Progress as lines, in the pace of ``receive``, for logs and serial consoles."""

    def __init__(
        self,
        write_line: Callable[[str], None] = _write_line,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; ``write_line`` writes the lines of progress."""
        self._write_line = write_line
        self._clock = clock
        self._phase = ""
        self._total_bytes = 0
        self._pace = LinePace(clock)

    def start_phase(self, phase: str, total_bytes: int) -> None:
        """Start a phase; one without bytes isn't shown."""
        self._phase, self._total_bytes = phase, total_bytes
        self._pace = LinePace(self._clock)
        self._pace.due(0.0)  # the start of a phase says nothing yet

    def advance(self, done_bytes: int) -> None:
        """Write a line if it is due."""
        if not self._total_bytes:
            return
        share = done_bytes / self._total_bytes
        if self._pace.due(share):
            done = f"{format_bytes(done_bytes)} of {format_bytes(self._total_bytes)}"
            self._write_line(f"{self._phase}: {done}, {share:.0%}")


class BarProgress(TextProgress):
    """One progress bar a phase and the outcome as text on stderr, for terminals."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        self._bars = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start_phase(self, phase: str, total_bytes: int) -> None:  # noqa: D102
        self._bars.add_task(phase, total=total_bytes)

    def advance(self, done_bytes: int) -> None:  # noqa: D102
        self._bars.update(self._bars.task_ids[-1], completed=done_bytes)

    def differences(self, count: int, first: Sequence[Difference]) -> None:  # noqa: D102
        self._bars.stop()
        super().differences(count, first)

    def result(self, fields: dict[str, object], text: str) -> None:  # noqa: D102
        self._bars.stop()
        super().result(fields, text)


def _print_line(event: str, **fields: object) -> None:
    click.echo(json.dumps({"event": event, **fields}))
