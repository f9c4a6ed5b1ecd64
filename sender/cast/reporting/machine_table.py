"""Draw the live table of a cast's machines, with those that need attention first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from protocol.shared.units import format_rate

STANDING_STYLES: Final = {
    "complete": "green",
    "failed": "red",
    "lost": "red",
    "dropped": "red",
    "joined": "yellow",
    "slow": "yellow",
    "tail": "yellow",
}
_BAR_COLUMNS: Final = 12
"""Narrow enough for a table of 80 columns."""


class MachineRow(Protocol):
    """The values of one machine in the table."""

    @property
    def name(self) -> str:
        """Name of the machine."""

    @property
    def standing(self) -> str:
        """State of the machine; ``tail`` or ``slow`` for an active straggler."""

    @property
    def active(self) -> bool:
        """True until the machine has completed, failed or been lost."""

    @property
    def progress(self) -> float:
        """Share of the needed blocks that is verified, 0..1."""

    @property
    def rate_bytes_per_s(self) -> float:
        """Write rate."""

    @property
    def loss(self) -> float:
        """Share of datagrams lost, 0..1."""

    @property
    def nacks_count(self) -> int | None:
        """NACK datagrams sent; None if unknown."""

    @property
    def bottleneck(self) -> str:
        """Bottleneck of the machine."""

    @property
    def error(self) -> str:
        """Failure of a machine that ended incomplete."""


def standing_text(standing: str) -> Text:
    """Return a state in its colour."""
    return Text(standing, style=STANDING_STYLES.get(standing, ""))


def machine_table(
    rows: Sequence[MachineRow],
    line_count: int,
    *,
    noun: str = "receiver",
    state_text: Callable[[str], Text] = standing_text,
) -> Table:
    """Return a table of at most ``line_count`` machines: active ones, slowest first, then failed, then complete ones.

    Args:
        rows: all machines.
        line_count: free lines of the terminal.
        noun: heading of the name column.
        state_text: returns the text to show for a row's ``standing``.
    """
    shown = sorted(rows, key=_attention)[:line_count]
    some_nacks = any(row.nacks_count is not None for row in shown)
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="dim")
    for column in (
        noun,
        "state",
        "progress",
        "",
        "writes",
        "loss",
        *(["NACKs"] if some_nacks else []),
        "bottleneck",
    ):
        right = column in ("", "writes", "loss", "NACKs")
        cut = column in (noun, "bottleneck")
        table.add_column(column, justify="right" if right else "left", no_wrap=not cut)
    for row in shown:
        table.add_row(*_cells(row, state_text(row.standing), some_nacks=some_nacks))
    return table


def _attention(row: MachineRow) -> tuple[int, float]:
    rank = 0 if row.active else 2 if row.standing == "complete" else 1
    return rank, row.progress


def _cells(row: MachineRow, state: Text, *, some_nacks: bool) -> tuple[Text | ProgressBar, ...]:
    """Return one line; long names and errors are truncated, because the other columns would shrink to nothing."""
    return (
        Text(row.name, no_wrap=True, overflow="ellipsis"),
        state,
        ProgressBar(total=1.0, completed=row.progress, width=_BAR_COLUMNS),
        Text(f"{row.progress:.1%}"),
        Text(format_rate(row.rate_bytes_per_s)),
        Text(f"{row.loss:.1%}"),
        *([Text("" if row.nacks_count is None else str(row.nacks_count))] if some_nacks else []),
        Text(row.bottleneck if row.active else row.error, no_wrap=True, overflow="ellipsis"),
    )
