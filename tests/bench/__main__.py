"""Benchmark diskcast, udpcast and UFTP, and diskcast's components: ``python -m tests.bench``.

Needs root. Every cast and the whole run have a time limit; Ctrl-C cleans up.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
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
from tests.bench import ours, peers, report
from tests.bench.kept_memory import kept_memory, touch_memory
from tests.bench.measurement import Measurement, Scenario, median, write_random_image
from tests.bench.rates import SCENARIOS
from tests.bench.rates import measure as measure_rates
from tests.bench.terminal import run_command
from tests.support.network.lab import Network, privileged_obstacle

COMPONENTS = {
    "Erasure code": "tests.bench.components_fec",
    "Packing": "tests.bench.components_pack",
    "Import": "tests.bench.components_import",
    "Partclone images": "tests.bench.components_partclone",
    "Disk": "tests.bench.components_disk",
    "Wire codec": "tests.bench.components_codec",
}
PEERS = {peers.UDPCAST: peers.udpcast_version, peers.UFTP: peers.uftp_version}

QUICK_BYTES = 16 * MIB

Cast = Callable[[Network, Scenario, float], Measurement]


def _numbers(_context: click.Context, _parameter: click.Parameter, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter("separate numbers by commas, for example 1,4") from error
    if not 0 < len(values) <= 8:
        raise click.BadParameter("one to eight numbers")
    return values


@click.command()
@click.option("--size", default="1GiB", show_default=True, help="size of the image of random bytes")
@click.option("--receivers", default="1,4", show_default=True, callback=_numbers)
@click.option("--loss", default="0,1,5", show_default=True, callback=_numbers, help="percent")
@click.option("--offload", type=click.Choice(["both", "on", "off"]), default="both", show_default=True)
@click.option("--rounds", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option("--limit", "limit_s", default=120.0, show_default=True, help="time limit of a cast in seconds")
@click.option(
    "--budget", "budget_s", default=5400.0, show_default=True, help="time limit of all casts in seconds"
)
@click.option("--peers", "peer_names", default="udpcast,uftp", show_default=True, help="'' for none")
@click.option("--components/--no-components", default=True, show_default=True)
@click.option(
    "--rates/--no-rates", default=False, show_default=True, help="also run python -m tests.bench.rates"
)
@click.option("--quick", is_flag=True, help="smoke test: 64 MiB (rates: 16 MiB), one round, 0 and 5 % loss")
@click.option("--report", "report_path", type=click.Path(dir_okay=False, path_type=Path))
def main(
    size: str,
    receivers: list[float],
    loss: list[float],
    offload: str,
    rounds: int,
    limit_s: float,
    budget_s: float,
    peer_names: str,
    components: bool,
    rates: bool,
    quick: bool,
    report_path: Path | None,
) -> None:
    """Measure diskcast and its peers in separate network namespaces."""
    obstacle = privileged_obstacle()
    if obstacle is not None:
        raise click.ClickException(f"the bench needs root, namespaces and nftables: {obstacle}")
    if quick:
        size, rounds, loss = "64MiB", 1, [0.0, 5.0]
    scenarios = [
        Scenario(int(count), round(percent * 10), state)
        for count, percent, state in itertools.product(
            receivers, loss, {"both": (True, False), "on": (True,), "off": (False,)}[offload]
        )
    ]
    console = rich.console.Console(stderr=True)
    load_before = os.getloadavg()[0]
    image_bytes = parse_size_bytes(size)
    versions = {ours.DISKCAST: importlib.metadata.version("diskcast")} | _installed_peers(peer_names, console)
    with kept_memory(), tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diskcast-bench-") as folder:
        casts, omitted = _measure_casts(
            Path(folder), image_bytes, scenarios, list(versions), rounds, limit_s, budget_s, console
        )
    figures = dict(_measure_components(console)) if components else {}
    rates_size_bytes = QUICK_BYTES if quick else None
    scenario_figures = measure_rates(tuple(SCENARIOS), rates_size_bytes, 1, console) if rates else []
    results = report.Results(
        image_bytes, rounds, versions, casts, figures, omitted, scenario_figures, load_before
    )
    report.print_results(results, rich.console.Console(width=None if sys.stdout.isatty() else 140))
    if report_path is not None:
        report.write_report(results, report_path)


def _installed_peers(names: str, console: rich.console.Console) -> dict[str, str]:
    wanted = {name.strip().lower() for name in names.split(",") if name.strip()}
    unknown = wanted - {name.lower() for name in PEERS}
    if unknown:
        raise click.BadParameter(f"unknown peers {sorted(unknown)}: choose from udpcast,uftp")
    installed = {}
    for name, version_of in PEERS.items():
        if name.lower() not in wanted:
            continue
        version = version_of()
        if version is None:
            console.print(f"{name} isn't installed and is left out: apt-get install {name.lower()}")
        else:
            installed[name] = version
    return installed


def _measure_casts(
    folder: Path,
    image_bytes: int,
    scenarios: Sequence[Scenario],
    programs: Sequence[str],
    round_count: int,
    limit_s: float,
    budget_s: float,
    console: rich.console.Console,
) -> tuple[list[tuple[Scenario, list[Measurement]]], list[str]]:
    image, packed = folder / "image.bin", folder / "image.dci"
    write_random_image(image, image_bytes, seed=1)
    ours.pack(image, packed)
    casts: dict[str, Cast] = {
        ours.DISKCAST: lambda network, _scenario, limit: ours.cast_diskcast(network, image, packed, limit),
        peers.UDPCAST: lambda network, scenario, limit: peers.cast_udpcast(
            network, image, scenario.loss_permille > 0, limit
        ),
        peers.UFTP: lambda network, _scenario, limit: peers.cast_uftp(network, image, limit),
    }
    deadline_s = time.monotonic() + budget_s
    measured: list[tuple[Scenario, list[Measurement]]] = []
    omitted = []
    for scenario in scenarios:
        if time.monotonic() > deadline_s:
            omitted.append(f"{scenario.title}: the time limit of {budget_s:.0f} s for all casts was reached")
            continue
        rounds: dict[str, list[Measurement]] = {program: [] for program in programs}
        for index in range(round_count):
            # Alternating order: warm caches or throttling then don't favour one program.
            for program in list(programs)[:: 1 if index % 2 == 0 else -1]:
                if any(one.failure for one in rounds[program]):
                    continue  # it failed before and would only reach the limit again
                with Network(scenario.receiver_count) as network:
                    network.set_offload(scenario.offload)
                    network.set_loss(scenario.loss_permille)
                    touch_memory(folder, scenario.receiver_count * image_bytes)
                    one = casts[program](network, scenario, limit_s)
                rounds[program].append(one)
                console.print(
                    f"{scenario.title}, round {index + 1}: {program} {one.failure or f'{one.wall_s:.1f} s'}"
                )
        measured.append((scenario, [median(rounds[program]) for program in programs]))
    return measured, omitted


def _measure_components(
    console: rich.console.Console,
) -> Iterator[tuple[str, Sequence[dict[str, object]]]]:
    for title, module_name in COMPONENTS.items():
        console.print(f"{title} …")
        yield title, importlib.import_module(module_name).run()


if __name__ == "__main__":
    run_command(main)
