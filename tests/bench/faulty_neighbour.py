"""Measure the cost of one faulty disk for the rest of the room: ``python -m tests.bench.faulty_neighbour [NAME…]``.

Three healthy receivers and one with a faulty disk, at a shaped rate: the time of the healthy ones is compared with that
of the same room without the fault. Needs root; exit code 1 if a bound is exceeded.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import rich.console

from protocol.constants import MIB
from protocol.shared.units import parse_size_bytes
from tests.bench import figures, report
from tests.bench.figures import FAIL, Figure
from tests.bench.kept_memory import kept_memory
from tests.bench.room import Bench, CastRecord, Image, Target
from tests.bench.terminal import run_command
from tests.support.disks.slow_disk import Action, Behaviour, Fault, Operation, slow_disk
from tests.support.network.lab import LabError, Network, privileged_obstacle

HEALTHY = range(3)
FAULTY = 3
RATE_MBIT_PER_S = 200
LIMIT_S = 180.0
OTHERS_BOUND = 1.10
FAULTY_MEMORY = "24MiB"
"""Small compared with the image, as in practice, so that buffers don't hide a hanging disk."""

_AFTER = 16 * MIB
_fault_inside = functools.partial(Fault, start_bytes=32 * MIB, stop_bytes=33 * MIB)

FAULTS: dict[str, Fault] = {
    "no-space": Fault(Operation.WRITE, Action.ERROR, error="ENOSPC", after_bytes=_AFTER),
    "write-error": Fault(Operation.WRITE, Action.ERROR, after_bytes=_AFTER),
    "read-back-error": _fault_inside(Operation.READ, Action.ERROR),
    "flush-error": Fault(Operation.FLUSH, Action.ERROR, after_bytes=_AFTER),
    "short-writes": Fault(Operation.WRITE, Action.SHORT),
    "bit-flipped-once": _fault_inside(Operation.WRITE, Action.FLIP, count=1),
    "bits-flipped": _fault_inside(Operation.WRITE, Action.FLIP),
    "writes-misdirected": _fault_inside(Operation.WRITE, Action.MISDIRECT, shift_bytes=8 * MIB),
    "writes-lost": _fault_inside(Operation.WRITE, Action.LOSE),
    "hang": Fault(Operation.WRITE, Action.HANG, after_bytes=_AFTER),
}


def cast_with(bench: Bench, image: Image, fault: Fault | None) -> CastRecord:
    """Run one cast; hanging operations are released once the healthy receivers have exited."""
    behaviour = Behaviour(faults=() if fault is None else (fault,))
    with (
        tempfile.TemporaryDirectory(dir=bench.folder) as folder,
        slow_disk(Path(folder), behaviour) as disk,
        Network(len(HEALTHY) + 1) as network,
    ):
        network.set_rate(RATE_MBIT_PER_S)
        target = Target(disk.directory / "target", disk.storage / "target")
        with bench.cast(
            network,
            image,
            targets={FAULTY: target},
            agent_options={FAULTY: ("--memory", FAULTY_MEMORY)},
            limit_s=LIMIT_S,
        ) as cast:
            for index in HEALTHY:
                cast.agents[index].wait(LIMIT_S)
            disk.set_behaviour(Behaviour())
            return cast.finish(succeeds=fault is None)


@functools.cache
def reference_s(bench: Bench, image: Image) -> float:
    """Return the healthy receivers' time without a fault: the median of the rounds, measured once per run."""
    [seconds] = bench.alternate(lambda: cast_with(bench, image, None).slowest_s(HEALTHY))
    return seconds


def measure(name: str, bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure one fault."""
    records: list[CastRecord] = []

    def seconds() -> float:
        records.append(cast_with(bench, image, FAULTS[name]))
        return records[-1].slowest_s(HEALTHY)

    alone_s = reference_s(bench, image)
    [others_s] = bench.alternate(seconds)
    codes = sorted({record.agent_exit_codes[FAULTY] for record in records})
    yield Figure(
        name,
        "time of the healthy ones against a room in order",
        others_s / alone_s,
        at_most=OTHERS_BOUND,
        note=f"{others_s:.2f} s against {alone_s:.2f} s; the faulty one exits with {', '.join(map(str, codes))}",
    )


def _known(_context: click.Context, _parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := set(names) - set(FAULTS):
        raise click.BadParameter(f"no fault {', '.join(sorted(unknown))}: choose from {', '.join(FAULTS)}")
    return names or tuple(FAULTS)


@click.command()
@click.argument("names", nargs=-1, callback=_known)
@click.option("--size", default="192MiB", show_default=True, help="size of the image, of random bytes")
@click.option("--rounds", type=click.IntRange(1, 9), default=1, show_default=True)
def main(names: tuple[str, ...], size: str, rounds: int) -> None:
    """Measure faults (default: all) in separate network namespaces."""
    obstacle = privileged_obstacle()
    if obstacle is not None:
        raise click.ClickException(f"the bench needs root, namespaces and nftables: {obstacle}")
    load_before = os.getloadavg()[0]
    measured: list[Figure] = []
    with kept_memory(), tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diskcast-faults-") as folder:
        bench = Bench(Path(folder), rounds, rich.console.Console(stderr=True))
        image = bench.image(parse_size_bytes(size))
        for name in names:
            bench.say(f"{name} …")
            try:
                measured += measure(name, bench, image)
            except LabError as error:
                bench.say(f"  {error}")
                measured.append(figures.failure(name, str(error).splitlines()[0]))
    table = report.rates_table(measured, f"load average before {load_before:.2f}")
    rich.console.Console(width=None if sys.stdout.isatty() else 160).print(table)
    if any(one.verdict == FAIL for one in measured):
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    run_command(main)
