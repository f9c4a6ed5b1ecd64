"""Reports of the benchmark: a table on the terminal, and ``docs/benchmarks.md``."""

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
    "wall / diskcast",
    "cast s",
    "goodput Mbit/s",
    "sender CPU s",
    "receiver CPU s",
    "sender peak",
    "receiver peak",
)

INTRODUCTION = """\
`make bench-report` writes this page. Ratios are comparable between machines; seconds aren't."""

LEGEND = """\
*wall*: time from the start of the sending program until the sender and all receivers have exited; receivers run before.
*cast*: time from the first data to the last receiver's last verified block, as diskcast reports it; the rest of its
wall time is the start of the interpreter and the join. *offload on*: a super-datagram (UDP_SEGMENT) crosses the
network, or is lost, as a whole; *off*: single datagrams. diskcast reads back and verifies every block; the peers don't.
udpcast runs in full duplex, and with loss in half duplex, because its receivers give up in full duplex. Every target
was compared with the source byte by byte."""


RATES_TITLE = "Automatic rate and stragglers"

RATES_LEGEND = """\
Default options unless the name says otherwise. Each figure has its bound; times are compared with a cast of the same
run. *goodput*: bytes of the disk per time of the cast, as diskcast reports it; a block of 256 KiB has 183 symbols of
1514 bytes each on Ethernet, so at most 94.6 % of a link. Links are shaped ports of the switch (tbf). *loss-1*,
*loss-5*: random loss of single datagrams at each of 4 receivers; *burst-loss*: loss of every 20th super-datagram.
*straggler-…*: one of 8 machines gets a tenth of the others' 200 Mbit/s, or has a disk of that speed. *tcp-share*: a
CUBIC flow to the receiver starts before the cast. *step*: the link's rate changes during the cast."""


@dataclasses.dataclass(frozen=True, slots=True)
class Results:
    """All results of a run."""

    image_bytes: int
    round_count: int
    versions: dict[str, str]
    casts: Sequence[tuple[Scenario, Sequence[Measurement]]]
    components: dict[str, Sequence[dict[str, object]]]
    omitted: Sequence[str]
    rates: Sequence[Figure]
    """Figures of the automatic rate and of stragglers; empty if they weren't measured."""
    load_before: float
    """One-minute load average of the machine at the start, which shows other load."""


def machine() -> list[str]:
    """Return the facts about this machine, one per line."""
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
    """Print tables to a terminal."""
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
        console.print(f"omitted: {line}")


def rates_table(measured: Sequence[Figure], title: str) -> rich.table.Table:
    """Return the table of the scenarios' figures and bounds."""
    table = rich.table.Table(*figures.HEADINGS, title=title, title_justify="left")
    for row in figures.rows(measured):
        table.add_row(*row)
    return table


def write_report(results: Results, path: Path) -> None:
    """Write the tables as Markdown, with the machine, the date and a legend."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    facts = [
        *machine(),
        f"{today}; load average before the first run: {results.load_before:.2f}",
        ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        f"image: {format_bytes(results.image_bytes)} of random bytes in memory (tmpfs), like the targets",
        _rounds(results.round_count),
        "network: namespaces on one bridge, MTU 1500; random loss at the ingress of every receiver",
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
        parts += ["## Omitted", "\n".join(f"* {line}" for line in results.omitted)]
    path.write_text("\n\n".join(parts) + "\n")


def _cast_rows(measurements: Sequence[Measurement], image_bytes: int) -> list[list[str]]:
    diskcast_s = measurements[0].wall_s
    return [
        [one.program, one.failure, *[""] * 7]
        if one.failure
        else [
            one.program,
            f"{one.wall_s:.1f}",
            f"{one.wall_s / diskcast_s:.2f}",
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
        return "one cast of each program on each network"
    return f"medians of {count} rounds, in which the order of the programs alternates"


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
