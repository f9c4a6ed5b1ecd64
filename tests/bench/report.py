"""The bench's figures as a table on the terminal and as ``docs/benchmarks.md``."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.table

from protocol.shared.units import format_bytes
from tests.bench import figures
from tests.bench.figures import Figure
from tests.bench.measurement import Measurement, Scenario

HEADINGS = (
    "program",
    "wall s",
    "wall / diskcast's",
    "cast s",
    "goodput Mbit/s",
    "sender CPU s",
    "receiver CPU s",
    "sender peak",
    "receiver peak",
)

INTRODUCTION = """\
Written by `make bench-report`; nothing here is edited by hand. Ratios carry over to other machines, seconds
don't."""

LEGEND = """\
*wall*: from the start of the sending program until sender and receivers have ended; receivers run beforehand.
*cast*: first data to last receiver's last verified block, which diskcast reports itself; the rest of its wall
time is the start of the interpreter and the join. *offload on*: a super-datagram (UDP_SEGMENT) crosses the
network whole and is lost whole; *off*: every datagram by itself. diskcast reads every block back and verifies it;
the peers don't. udpcast runs full duplex, and half duplex where there is loss: in full duplex its receivers then
give up. Every result was compared with the source byte by byte."""


RATES_TITLE = "Automatic rate and stragglers"

RATES_LEGEND = """\
Without options unless the name says otherwise, held to the bound beside each figure; times are compared with a cast
of the same run. *goodput*: bytes of the disk over the time that the cast says it took; a block of 256 KiB is 183
symbols that take 1514 bytes each on Ethernet, so that 94.6 % of a link is the most. Links are the switch's ports,
shaped (tbf). *loss-1*, *loss-5*: single datagrams at random at each of 4 receivers; *burst-loss*: every 20th
super-datagram whole. *straggler-…*: one of 8 machines gets a tenth of the others' 200 Mbit/s, or has a disk that
writes so slowly. *tcp-share*: a CUBIC flow to the one receiver was there before the cast. *step*: the link
changes in the middle of the cast."""


@dataclasses.dataclass(frozen=True, slots=True)
class Results:
    """All that a run of the bench found out."""

    image_bytes: int
    round_count: int
    versions: dict[str, str]
    casts: Sequence[tuple[Scenario, Sequence[Measurement]]]
    components: dict[str, Sequence[dict[str, object]]]
    omitted: Sequence[str]
    rates: Sequence[Figure]
    """Of the automatic rate and the handling of stragglers, where they were measured."""
    load_before: float
    """The machine's one-minute load average at the start: what else was running."""


def machine() -> list[str]:
    """What the figures were measured on, a line a fact."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    memory_kib = next(
        int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")
    )
    return [
        f"{os.cpu_count()} cores, {model}, {format_bytes(memory_kib * 1024)} memory",
        f"Linux {platform.release()}, Python {platform.python_version()}",
    ]


def print_results(results: Results, console: rich.console.Console) -> None:
    """Tables for a person at a terminal."""
    for scenario, measurements in results.casts:
        table = rich.table.Table(*HEADINGS, title=scenario.title, title_justify="left")
        for row in _cast_rows(measurements, results.image_bytes):
            table.add_row(*row)
        console.print(table)
    for title, parts in results.components.items():
        headings = _component_headings(parts)
        table = rich.table.Table(*headings, title=title, title_justify="left")
        for part in parts:
            table.add_row(*(_cell(part.get(heading)) for heading in headings))
        console.print(table)
    if results.rates:
        console.print(rates_table(results.rates, RATES_TITLE))
    for line in results.omitted:
        console.print(f"left out: {line}")


def rates_table(measured: Sequence[Figure], title: str) -> rich.table.Table:
    """Scenarios' figures and their bounds."""
    table = rich.table.Table(*figures.HEADINGS, title=title, title_justify="left")
    for row in figures.rows(measured):
        table.add_row(*row)
    return table


def write_report(results: Results, path: Path) -> None:
    """The same as Markdown, with the machine, the date and how to read it."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    facts = [
        *machine(),
        f"{today}; load average {results.load_before:.2f} before the first run",
        ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        f"image: {format_bytes(results.image_bytes)} of random bytes in memory (tmpfs), as are the targets",
        _rounds(results.round_count),
        "network: namespaces on one bridge, MTU 1500; loss is random, at every receiver's ingress",
    ]
    parts = ["# Benchmarks", INTRODUCTION, "\n".join(f"* {fact}" for fact in facts), LEGEND, "## Casts"]
    for scenario, measurements in results.casts:
        parts += [f"### {scenario.title}", _markdown(HEADINGS, _cast_rows(measurements, results.image_bytes))]
    if results.rates:
        table = _markdown(figures.HEADINGS, figures.rows(results.rates))
        parts += [f"## {RATES_TITLE}", RATES_LEGEND, table]
    for title, rows in results.components.items():
        headings = _component_headings(rows)
        cells = [[_cell(row.get(heading)) for heading in headings] for row in rows]
        parts += [f"## {title}", _markdown(headings, cells)]
    if results.omitted:
        parts += ["## Left out", "\n".join(f"* {line}" for line in results.omitted)]
    path.write_text("\n\n".join(parts) + "\n")


def _cast_rows(measurements: Sequence[Measurement], image_bytes: int) -> list[list[str]]:
    ours_s = measurements[0].wall_s
    return [
        [one.program, one.failure, *[""] * 7]
        if one.failure
        else [
            one.program,
            f"{one.wall_s:.1f}",
            f"{one.wall_s / ours_s:.2f}",
            "" if math.isnan(one.cast_s) else f"{one.cast_s:.1f}",
            f"{image_bytes * 8e-6 / one.wall_s:.0f}",
            f"{one.sender_cpu_s:.1f}",
            f"{one.receiver_cpu_s:.1f}",
            format_bytes(one.sender_peak_bytes),
            format_bytes(one.receiver_peak_bytes),
        ]
        for one in measurements
    ]


def _rounds(count: int) -> str:
    if count == 1:
        return "one cast of each program in each network"
    return f"medians of {count} rounds, the programs in alternating order"


def _component_headings(rows: Sequence[dict[str, object]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
