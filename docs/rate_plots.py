"""The plots and tables of ``docs/explanation/rate-control.md``, from the parity planner and from simulated casts.

``python -m docs.rate_plots [SCENARIO...]``; with names only these scenarios' rows and plots are done again.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Final

import click

from protocol.sending.rate.parity import ParityPlanner
from tests.simulation.plots import draw_rates
from tests.simulation.rate_traces import COLUMNS, cells
from tests.simulation.scenarios import BY_NAME, SCENARIOS
from tests.simulation.traces import Trace, record, summarise

DOCS: Final = Path(__file__).parent
PAGE: Final = DOCS / "explanation" / "rate-control.md"
PLOTS: Final = PAGE.parent / "plots"
PLOTTED: Final = (
    "shaped-200",
    "step",
    "loss-5",
    "one-slow-demote",
    "slow-disk-demote",
    "tcp-share",
    "burst-loss-gigabit",
)
_PLOT_BYTES_MAX: Final = 150_000
_SAMPLES_MAX: Final = 900
"""About one for each pixel of a plot's width."""

_PARITY_K: Final = 182
_PARITY_LOSSES: Final = (0.001, 0.01, 0.05)
_PARITY_GROUPS: Final = (1, 4, 30, 1000)


def table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parity_table() -> str:
    rows = []
    for loss in _PARITY_LOSSES:
        row = [f"{loss:.1%}"]
        for count in _PARITY_GROUPS:
            planner = ParityPlanner()
            planner.update([(loss, 1.0)] * count)
            symbols = planner.symbols(_PARITY_K)
            row.append(f"{symbols} ({symbols / _PARITY_K:.1%})")
        rows.append(row)
    groups = [f"{count} receiver{'s' if count > 1 else ''}" for count in _PARITY_GROUPS]
    return table(["loss at each", *groups], rows)


def known_rows(page: str) -> dict[str, list[str]]:
    """The rows of scenarios that the page has already, by name."""
    lines = re.findall(r"^\| (.*) \|$", _between(page, "scenarios"), re.MULTILINE)
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {row[0]: row for row in rows if row[0] in BY_NAME}


def _between(page: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert found is not None, f"{PAGE.name} has no place for {name}"
    return found[1]


def _fill(page: str, name: str, text: str) -> str:
    return page.replace(
        f"<!-- {name} -->\n{_between(page, name)}<!-- end -->", f"<!-- {name} -->\n\n{text}\n\n<!-- end -->"
    )


def _rounded(path: re.Match[str]) -> str:
    return re.sub(r"\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", path[0])


def draw(name: str, trace: Trace) -> None:
    """The plot of one scenario, no finer than it is looked at."""
    step = -(-trace.samples.size // _SAMPLES_MAX)
    thinned = dataclasses.replace(trace, samples=trace.samples[::step], ports=trace.ports[::step])
    path = PLOTS / f"{name}.svg"
    PLOTS.mkdir(exist_ok=True)
    draw_rates(thinned, BY_NAME[name].title, path)
    # A tenth of a point is finer than anything that is seen.
    text = re.sub(r'(?<= d=")[^"]+', _rounded, path.read_text())
    path.write_text(re.sub(r" +$", "", text, flags=re.MULTILINE))
    assert len(text) <= _PLOT_BYTES_MAX, f"{path.name}: {len(text)} bytes"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(BY_NAME)), metavar="[SCENARIO]...")
def main(names: tuple[str, ...]) -> None:
    """Do the figures of docs/explanation/rate-control.md again; all scenarios take some minutes."""
    for scenario in SCENARIOS:
        if names and scenario.name not in names:
            continue
        trace = record(scenario.build())
        row = cells(scenario.name, trace, summarise(trace))
        click.echo("  ".join(row))
        if scenario.name in PLOTTED:
            draw(scenario.name, trace)
        # Read again each time: what is there after an interruption is kept.
        page = _fill(PAGE.read_text(), "parity", parity_table())
        rows = known_rows(page) | {scenario.name: row}
        ordered = [rows[known.name] for known in SCENARIOS if known.name in rows]
        PAGE.write_text(_fill(page, "scenarios", table([heading for heading, _ in COLUMNS], ordered)))


if __name__ == "__main__":
    main()
