"""Benchmark of the automatic rate and of stragglers, with bounds: ``python -m tests.bench.rates [NAME…]``.

Needs root. Real programs over real multicast between namespaces; every scenario measures its own reference. The whole
set takes about ten minutes; the exit code is 1 if a bound is broken.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import rich.console

from protocol.constants import MIB
from protocol.shared.units import parse_size_bytes
from tests.bench import (
    attack_scenario,
    encryption_scenario,
    figures,
    neighbour_scenarios,
    rate_scenarios,
    reimage_scenarios,
    report,
    slow_machine_scenarios,
    straggler_scenarios,
)
from tests.bench.figures import FAIL, Figure
from tests.bench.kept_memory import kept_memory
from tests.bench.room import Bench, Image
from tests.bench.terminal import run_command
from tests.support.network.lab import LabError, privileged_obstacle


@dataclasses.dataclass(frozen=True, slots=True)
class RateScenario:
    """A scenario and its image size: small where the network is slow."""

    size_bytes: int
    run: Callable[[Bench, Image], Iterator[Figure]]


SCENARIOS = {
    "shaped-50": RateScenario(128 * MIB, functools.partial(rate_scenarios.shaped, mbit_per_s=50)),
    "shaped-200": RateScenario(512 * MIB, functools.partial(rate_scenarios.shaped, mbit_per_s=200)),
    "shaped-800": RateScenario(512 * MIB, functools.partial(rate_scenarios.shaped, mbit_per_s=800)),
    "peers-200": RateScenario(128 * MIB, functools.partial(rate_scenarios.shaped_peers, mbit_per_s=200)),
    "loss-1": RateScenario(
        512 * MIB, functools.partial(rate_scenarios.random_loss, percent=1, at_least_percent=95.0)
    ),
    "loss-5": RateScenario(
        512 * MIB, functools.partial(rate_scenarios.random_loss, percent=5, at_least_percent=80.0)
    ),
    "burst-loss": RateScenario(512 * MIB, rate_scenarios.burst_loss),
    "scale-16": RateScenario(
        96 * MIB, functools.partial(rate_scenarios.scale, receiver_count=16, mbit_per_s=100)
    ),
    "straggler-network": RateScenario(192 * MIB, straggler_scenarios.demoted),
    "straggler-drop": RateScenario(192 * MIB, straggler_scenarios.dropped),
    "straggler-wait": RateScenario(64 * MIB, straggler_scenarios.waited_for),
    "straggler-disk": RateScenario(128 * MIB, straggler_scenarios.slow_disk_named),
    "straggler-udpcast": RateScenario(64 * MIB, straggler_scenarios.udpcast_with_slow_link),
    "slow-machines": RateScenario(96 * MIB, slow_machine_scenarios.slow_machines),
    "tcp-share": RateScenario(192 * MIB, neighbour_scenarios.tcp_share),
    "step": RateScenario(256 * MIB, neighbour_scenarios.step),
    "encrypt": RateScenario(512 * MIB, encryption_scenario.encryption),
    attack_scenario.NAME: RateScenario(256 * MIB, attack_scenario.forged_nacks),
    "reimage-200": RateScenario(512 * MIB, reimage_scenarios.reimage),
}


def measure(
    names: Sequence[str], size_bytes: int | None, round_count: int, console: rich.console.Console
) -> list[Figure]:
    """Run scenarios one after the other; one that can't run is a failed figure.

    Args:
        names: keys of :data:`SCENARIOS`.
        size_bytes: size of every image; None for each scenario's own.
        round_count: casts of each kind where a scenario compares two.
        console: console for a line about every cast.
    """
    measured: list[Figure] = []
    with kept_memory(), tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diskcast-rates-") as folder:
        bench = Bench(Path(folder), round_count, console)
        for name in names:
            scenario = SCENARIOS[name]
            started_s = time.monotonic()
            bench.say(f"{name} …")
            try:
                measured += scenario.run(bench, bench.image(size_bytes or scenario.size_bytes))
            except LabError as error:
                bench.say(f"  {error}")
                measured.append(figures.failure(name, str(error).splitlines()[0]))
            bench.say(f"  took {time.monotonic() - started_s:.0f} s")
    return measured


def _known(_context: click.Context, _parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := set(names) - set(SCENARIOS):
        raise click.BadParameter(
            f"no scenario {', '.join(sorted(unknown))}: choose from {', '.join(SCENARIOS)}"
        )
    return names or tuple(SCENARIOS)


@click.command()
@click.argument("names", nargs=-1, callback=_known)
@click.option("--size", help="size of every image  [default: depends on the scenario]")
@click.option("--rounds", type=click.IntRange(1, 9), default=1, show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path))
def main(names: tuple[str, ...], size: str | None, rounds: int, json_path: Path | None) -> None:
    """Measure scenarios (default: all) in separate network namespaces."""
    obstacle = privileged_obstacle()
    if obstacle is not None:
        raise click.ClickException(f"the bench needs root, namespaces and nftables: {obstacle}")
    size_bytes = None if size is None else parse_size_bytes(size)
    load_before = os.getloadavg()[0]
    measured = measure(names, size_bytes, rounds, rich.console.Console(stderr=True))
    table = report.rates_table(measured, f"load average before {load_before:.2f}")
    rich.console.Console(width=None if sys.stdout.isatty() else 160).print(table)
    if json_path is not None:
        lines = [{**dataclasses.asdict(one), "verdict": one.verdict} for one in measured]
        document = {"machine": report.machine(), "load_before": load_before, "figures": lines}
        json_path.write_text(json.dumps(document, indent=1) + "\n")
    if any(one.verdict == FAIL for one in measured):
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    run_command(main)
