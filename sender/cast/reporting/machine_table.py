"""The live table of a cast's machines, wherever it is watched: those that need attention first."""

from __future__ import annotations

from collections.abc import Sequence
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
"""So that the table fits 80 columns."""


class MachineRow(Protocol):
    """What the table shows of one machine."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def standing(self) -> str:
        """Its state or, while the cast works for it, ``tail`` or ``slow``."""

    @property
    def active(self) -> bool:
        """Whether the cast still works for it."""

    @property
    def progress(self) -> float:
        """0..1."""

    @property
    def rate_bytes_per_s(self) -> float:
        """What it writes."""

    @property
    def loss(self) -> float:
        """0..1."""

    @property
    def nacks_count(self) -> int | None:
        """None where nobody knows."""

    @property
    def bottleneck(self) -> str:
        """What limits it."""

    @property
    def error(self) -> str:
        """Why it isn't complete, once it has ended."""


def machine_table(rows: Sequence[MachineRow], line_count: int, *, noun: str = "receiver") -> Table:
    """A table of at most ``line_count`` machines: active ones, the slowest first; then failed ones; then complete ones.

    Args:
        rows: all machines.
        line_count: that the terminal has.
        noun: heading of their names.
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
        "limited by",
    ):
        right = column in ("", "writes", "loss", "NACKs")
        cut = column in (noun, "limited by")
        table.add_column(column, justify="right" if right else "left", no_wrap=not cut)
    for row in shown:
        table.add_row(*_cells(row, some_nacks=some_nacks))
    return table


def _attention(row: MachineRow) -> tuple[int, float]:
    rank = 0 if row.active else 2 if row.standing == "complete" else 1
    return rank, row.progress


def _cells(row: MachineRow, *, some_nacks: bool) -> tuple[Text | ProgressBar, ...]:
    """One line: a name or an error that is too long is cut, since other columns would shrink to nothing for it."""
    return (
        Text(row.name, no_wrap=True, overflow="ellipsis"),
        Text(row.standing, style=STANDING_STYLES.get(row.standing, "")),
        ProgressBar(total=1.0, completed=row.progress, width=_BAR_COLUMNS),
        Text(f"{row.progress:.1%}"),
        Text(format_rate(row.rate_bytes_per_s)),
        Text(f"{row.loss:.1%}"),
        *([Text("" if row.nacks_count is None else str(row.nacks_count))] if some_nacks else []),
        Text(row.bottleneck if row.active else row.error, no_wrap=True, overflow="ellipsis"),
    )
