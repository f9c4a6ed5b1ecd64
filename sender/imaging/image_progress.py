"""Progress of ``pack`` and ``verify``: a bar on a terminal, JSON lines with ``--json``, nothing otherwise."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import click
import rich.console
import rich.progress

JSON_INTERVAL_S: Final = 0.5
"""Shortest time between two JSON progress lines: often enough to show progress, without flooding a script."""

BarUpdate = Callable[[int, int], None]


def emit(event: str, **fields: object) -> None:
    """Print one JSON line."""
    click.echo(json.dumps({"event": event, **fields}))


@contextlib.contextmanager
def show_progress(phase: str, *, json_lines: bool) -> Iterator[BarUpdate]:
    """Yield a function to call with the bytes done and the total bytes, at any frequency.

    Args:
        phase: the operation, for example ``packing``.
        json_lines: JSON lines on stdout instead of a bar on stderr.
    """
    with show_phases(json_lines=json_lines) as updates:
        yield updates(phase)


@contextlib.contextmanager
def show_phases(*, json_lines: bool) -> Iterator[Callable[[str], BarUpdate]]:
    """Yield a function that returns, for the name of a phase, a function as of :func:`show_progress`.

    A phase that makes no progress isn't shown.
    """
    if json_lines:
        yield lambda phase: _JsonProgress(phase).update
    elif sys.stderr.isatty():
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.DownloadColumn(binary_units=True),
            rich.progress.TransferSpeedColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:

            def updates(phase: str) -> BarUpdate:
                task = bar.add_task(phase, total=None, visible=False)
                return lambda done_bytes, total_bytes: bar.update(
                    task, completed=done_bytes, total=total_bytes, visible=True
                )

            yield updates
    else:
        yield lambda _phase: lambda _done_bytes, _total_bytes: None


class _JsonProgress:
    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._shown_s = time.monotonic()
        self._started_s: float | None = None
        """Set by the first update: a phase may start long after its creation."""
        self._first_bytes = 0

    def update(self, done_bytes: int, total_bytes: int) -> None:
        now_s = time.monotonic()
        if self._started_s is None:
            self._started_s, self._first_bytes = now_s, done_bytes
        if now_s - self._shown_s < JSON_INTERVAL_S:
            return
        self._shown_s = now_s
        elapsed_s = now_s - self._started_s
        rate_bytes_per_s = (done_bytes - self._first_bytes) / elapsed_s if elapsed_s else 0.0
        emit(
            "progress",
            phase=self._phase,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            rate_bytes_per_s=round(rate_bytes_per_s),
            eta_s=round((total_bytes - done_bytes) / rate_bytes_per_s, 1) if rate_bytes_per_s else None,
        )
