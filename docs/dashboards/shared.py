"""Thresholds, numbers of states and selectors that several dashboards use."""

from __future__ import annotations

from docs.dashboards.panels import BOTTLENECKS, STATES, thresholds

ROOM = 'room=~"$room"'
"""Selector of the rooms that the viewer chose."""
LOSS = thresholds((None, "green"), (0.02, "yellow"), (0.05, "red"))
"""Thresholds of datagram loss; the alert fires in the red range."""
FULL = thresholds((None, "green"), (0.8, "yellow"), (0.95, "red"))
PROGRESS = thresholds((None, "text"), (1, "green"))
SLOW_S = thresholds((None, "green"), (0.1, "yellow"), (0.5, "red"))
STRAGGLER = [(0, "keeps up", "green"), (1, "slow", "yellow"), (2, "straggler", "orange")]
BOTTLENECK_VALUES = [(number, name, color) for number, (name, color) in enumerate(BOTTLENECKS.items(), 1)]
STATE_VALUES = [(number, name, color) for number, (name, color) in enumerate(STATES.items(), 1)]


def numbered(metric: str, selector: str, label: str, values: list[tuple[int, str, str]], by: str) -> str:
    """Return a query that turns one-hot series into one number each."""
    terms = [f'{metric}{{{selector}, {label}="{name}"}} * {number}' for number, name, _ in values]
    return f"max by ({by}) ({' or '.join(terms)})"
