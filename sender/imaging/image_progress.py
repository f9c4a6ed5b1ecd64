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
    if json_lines:
        yield _JsonProgress(phase).update
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
            task = bar.add_task(phase, total=None)
            yield lambda done_bytes, total_bytes: bar.update(task, completed=done_bytes, total=total_bytes)
    else:
        yield lambda _done_bytes, _total_bytes: None


class _JsonProgress:
    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._started_s = self._shown_s = time.monotonic()

    def update(self, done_bytes: int, total_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s < JSON_INTERVAL_S:
            return
        self._shown_s = now_s
        rate_bytes_per_s = done_bytes / (now_s - self._started_s)
        emit(
            "progress",
            phase=self._phase,
            done_bytes=done_bytes,
            total_bytes=total_bytes,
            rate_bytes_per_s=round(rate_bytes_per_s),
            eta_s=round((total_bytes - done_bytes) / rate_bytes_per_s, 1) if done_bytes else None,
        )
