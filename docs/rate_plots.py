"""Plots and tables of ``docs/explanation/rate-control.md``: ``python -m docs.rate_plots [SCENARIO...]``.

With names, only these scenarios are simulated again.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import Final

import click

from protocol.sending.rate.parity import ParityPlanner
from tests.simulation.plots import draw_outline, draw_rates
from tests.simulation.rate_traces import COLUMNS, cells
from tests.simulation.scenarios import BY_NAME, SCENARIOS
from tests.simulation.traces import Trace, record, summarise

DOCS: Final = Path(__file__).parent
PAGE: Final = DOCS / "explanation" / "rate-control.md"
PLOTS: Final = PAGE.parent / "plots"
OUTLINES: Final = PLOTS / "after"
BEFORE: Final = PLOTS / "before"
"""Made by this program from the last commit before the ablation (ad35571), with the scenarios of today."""
RATE: Final = DOCS.parent / "protocol" / "sending" / "rate"
_SHOWN: Final = (
    "scenario",
    "seconds",
    "goodput",
    "lost",
    "sent/src",
    "90 % after",
    "TCP",
    "bottlenecks",
    "at socket",
    "slow",
)
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

_OUTLINE_SAMPLES_MAX: Final = 250

_PARITY_K: Final = 183
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


def constants() -> list[tuple[str, str, str, str]]:
    """Return module, name, value and reason of each constant of rate control, in the order of the code."""
    found = []
    for path in sorted(RATE.glob("*.py")):
        body = ast.parse(path.read_text()).body
        for node, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            reason = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                reason = " ".join(str(following.value.value).split())
            assert node.value is not None
            found.append((path.stem, node.target.id, ast.unparse(node.value), reason))
    return found


def constants_table() -> str:
    rows = [[f"`{module}`", f"`{name}`", value, reason] for module, name, value, reason in constants()]
    return table(["module", "constant", "value", "reason"], rows)


def figures_table() -> str:
    """Return the figures of all scenarios, before and after the ablation."""
    before, after = (json.loads((folder / "figures.json").read_text()) for folder in (BEFORE, OUTLINES))
    shown = [index for index, (heading, _) in enumerate(COLUMNS) if heading in _SHOWN]
    rows = []
    for name in (scenario.name for scenario in SCENARIOS if scenario.name in after):
        # Columns and scenarios that are younger than the ablation, or than the last run, have no figure.
        new = dict(enumerate(after[name]))
        old = dict(enumerate(before.get(name, ())))
        pairs = [(old.get(index, new.get(index, "")), new.get(index, "")) for index in shown[1:]]
        rows.append([name, *(one if one == other else f"{one} → {other}" for one, other in pairs)])
    return table([COLUMNS[index][0] for index in shown], rows)


def outlines_table() -> str:
    names = [scenario.name for scenario in SCENARIOS if (OUTLINES / f"{scenario.name}.svg").exists()]
    folders = [str(folder.relative_to(PAGE.parent)) for folder in (BEFORE, OUTLINES)]
    rows = [
        [
            name,
            *(
                f"![{name}]({folder}/{name}.svg)" if (PAGE.parent / folder / f"{name}.svg").exists() else ""
                for folder in folders
            ),
        ]
        for name in names
    ]
    return table(["scenario", "before", "after"], rows)


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


def thinned(trace: Trace, samples_max: int) -> Trace:
    step = -(-trace.samples.size // samples_max)
    return dataclasses.replace(trace, samples=trace.samples[::step], ports=trace.ports[::step])


def tidy(path: Path) -> None:
    """Round coordinates to a tenth of a point, finer than anything visible."""
    text = re.sub(r'(?<= d=")[^"]+', _rounded, path.read_text())
    path.write_text(re.sub(r" +$", "", text, flags=re.MULTILINE))
    assert len(text) <= _PLOT_BYTES_MAX, f"{path.name}: {len(text)} bytes"


def draw(name: str, trace: Trace) -> None:
    """Draw one scenario: its outline and, for some, all of its trace."""
    title = BY_NAME[name].title
    OUTLINES.mkdir(parents=True, exist_ok=True)
    outline = OUTLINES / f"{name}.svg"
    draw_outline(thinned(trace, _OUTLINE_SAMPLES_MAX), title, outline)
    tidy(outline)
    if name in PLOTTED:
        path = PLOTS / f"{name}.svg"
        draw_rates(thinned(trace, _SAMPLES_MAX), title, path)
        tidy(path)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(BY_NAME)), metavar="[SCENARIO]...")
def main(names: tuple[str, ...]) -> None:
    """Update docs/explanation/rate-control.md; all scenarios take some minutes."""
    for scenario in SCENARIOS:
        if names and scenario.name not in names:
            continue
        trace = record(scenario.build())
        row = cells(scenario.name, trace, summarise(trace))
        click.echo("  ".join(row))
        draw(scenario.name, trace)
        figures = OUTLINES / "figures.json"
        rows = json.loads(figures.read_text()) if figures.exists() else {}
        figures.write_text(json.dumps(rows | {scenario.name: row}, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(filled(PAGE.read_text()))


def filled(page: str) -> str:
    """Return the page with its tables as they should be."""
    for name, text in (
        ("constants", constants_table()),
        ("parity", parity_table()),
        ("scenarios", figures_table()),
        ("outlines", outlines_table()),
    ):
        page = _fill(page, name, text)
    return page


if __name__ == "__main__":
    main()
