"""Simulated casts as a table and as plots: ``python -m tests.simulation.rate_traces NAME... | all``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import click

from tests.simulation.scenarios import BY_NAME, SCENARIOS, Scenario
from tests.simulation.traces import Summary, Trace, record, summarise

COLUMNS = (
    ("scenario", 20),
    ("seconds", 7),
    ("goodput", 7),
    ("lost", 6),
    ("by queue", 8),
    ("sent/src", 8),
    ("NACKs", 6),
    ("feedback", 8),
    ("90 % after", 11),
    ("TCP", 4),
    ("first, last but one, last end", 29),
    ("bottlenecks", 60),
    ("at socket", 9),
    ("slow", 0),
)
"""Heading and width; losses are those of the unluckiest receiver after the first two seconds, at sockets after three.
"Slow": changes of one receiver at most."""


def cells(name: str, trace: Trace, summary: Summary) -> list[str]:
    """Return one line of the table."""
    return [
        name,
        f"{summary.seconds:.1f}",
        f"{summary.goodput_share:.1%}",
        f"{summary.lost_share:.2%}",
        f"{summary.queue_lost_share:.2%}",
        f"{summary.sent_ratio:.3f}",
        f"{summary.nack_count}",
        f"{summary.feedback_share:.2%}",
        " ".join(f"{seconds:.2f}" for seconds in summary.reached_s),
        f"{summary.tcp_share:.0%}" if trace.model.tcp else "",
        _ends(summary),
        _bottlenecks(trace),
        f"{summary.socket_lost_share:.2%}" if summary.socket_lost_share else "",
        f"{summary.slow_changes_max or ''}",
    ]


def _line(texts: Sequence[str]) -> str:
    return "  ".join(text.ljust(width) for text, (_, width) in zip(texts, COLUMNS, strict=True)).rstrip()


def _ends(summary: Summary) -> str:
    """Return the end of the first, the last but one and the last receiver; "!" marks a missing image."""
    ends = sorted(zip(summary.finished_s, summary.complete, strict=True))
    shown = (ends[0], ends[max(0, len(ends) - 2)], ends[-1])
    return " ".join(dict.fromkeys(f"{seconds:.1f}{'' if complete else '!'}" for seconds, complete in shown))


def _bottlenecks(trace: Trace) -> str:
    """Return the bottlenecks of at least a tenth of the time."""
    shares: dict[str, int] = {}
    for cause, who in zip(trace.samples["cause"].tolist(), trace.samples["who"].tolist(), strict=True):
        name = cause if who < 0 else f"{cause}:{who}"
        shares[name] = shares.get(name, 0) + 1
    total = sum(shares.values())
    common = sorted(((count, name) for name, count in shares.items() if count >= total / 10), reverse=True)
    return " ".join(f"{name} {count / total:.0%}" for count, name in common)


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--plot", "folder", type=click.Path(file_okay=False, path_type=Path), help="Folder for SVG files."
)
@click.option("--seed", type=int, help="Seed, instead of that of each scenario.")
@click.option("--events", is_flag=True, help="Print the events of the sender's session.")
def main(names: tuple[str, ...], folder: Path | None, seed: int | None, events: bool) -> None:
    """Simulate casts and print their figures; without a NAME, list the scenarios."""
    chosen = _choose(names)
    click.echo(_line([heading for heading, _ in COLUMNS]))
    for scenario in chosen:
        model = scenario.build()
        if seed is not None:
            model = dataclasses.replace(model, seed=seed)
        try:
            trace = record(model)
        except AssertionError as error:
            click.echo(f"{scenario.name}: {error}")
            continue
        click.echo(_line(cells(scenario.name, trace, summarise(trace))))
        if events:
            _print_events(trace)
        if folder is not None:
            from tests.simulation.plots import draw_rates

            folder.mkdir(parents=True, exist_ok=True)
            draw_rates(trace, scenario.title, folder / f"{scenario.name}.svg")


def _choose(names: tuple[str, ...]) -> list[Scenario]:
    if names == ("all",):
        return list(SCENARIOS)
    unknown = [name for name in names if name not in BY_NAME]
    if unknown or not names:
        listing = "\n".join(f"  {scenario.name:22} {scenario.title}" for scenario in SCENARIOS)
        raise click.UsageError(
            f"unknown: {', '.join(unknown) or 'no name given'}; there are all and\n{listing}"
        )
    return [BY_NAME[name] for name in names]


def _print_events(trace: Trace) -> None:
    started_at = trace.cast.session.statistics.started_at or 0.0
    for at, event in trace.cast.events:
        click.echo(f"  {at - started_at:8.2f} s  {event}")


if __name__ == "__main__":
    main()
