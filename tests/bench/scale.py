"""Measure the cost of a room of a thousand receivers, without the machines: ``python -m tests.bench.scale``.

Casts are simulated with real protocol objects; the sender's feedback path and control API are driven over loopback.
"""

from __future__ import annotations

import os

import click
import rich.console
import rich.table

from tests.bench.control_load import measure
from tests.bench.feedback_replay import path_cost, session_cost
from tests.simulation.cast import SimulatedCast
from tests.simulation.links import BYTES_PER_S_OF_MBIT
from tests.simulation.scale import LINK_MBIT_PER_S, ScaleFigures, figures, room

_LOSS = 0.001
_EVENT_INTERVAL_S = 0.2
_FIXED_BYTES_PER_S = 0.94 * LINK_MBIT_PER_S * BYTES_PER_S_OF_MBIT
"""A fixed rate for shared losses: the automatic rate's search for the limit would cause losses itself."""
_EVENTS_MAX = 1000


@click.command()
@click.option("--receivers", "receiver_count", type=click.IntRange(2, 1000), default=1000, show_default=True)
@click.option(
    "--blocks",
    "block_count",
    type=click.IntRange(10),
    default=150,
    show_default=True,
    help="number of blocks of 256 KiB",
)
@click.option("--seed", default=1, show_default=True)
@click.option("--replay/--no-replay", default=True, show_default=True, help="replay feedback over loopback")
@click.option("--control/--no-control", default=True, show_default=True, help="join over TLS")
def main(receiver_count: int, block_count: int, seed: int, replay: bool, control: bool) -> None:
    """Simulate casts to one and to many receivers, replay the feedback of the large one, and let a room join."""
    console = rich.console.Console(width=120)
    console.print(f"load average {os.getloadavg()[0]:.2f} before")
    alone = SimulatedCast(room(1, block_count, loss=_LOSS, seed=seed)).run()
    crowd = SimulatedCast(room(receiver_count, block_count, loss=_LOSS, seed=seed), keep_log=replay).run()
    _print_casts(console, block_count, figures(alone), figures(crowd))
    if replay:
        _print_replay(console, crowd)
    del crowd
    _print_shared_losses(console, receiver_count, block_count, seed)
    if control:
        _print_control(console, receiver_count)


def _print_casts(
    console: rich.console.Console, block_count: int, alone: ScaleFigures, crowd: ScaleFigures
) -> None:
    title = (
        f"{block_count} blocks of 256 KiB at {LINK_MBIT_PER_S:g} Mbit/s, {_LOSS:.1%} lost at each receiver"
    )
    headings = ("receivers", "seconds", "ratio", "sent / source", "NACKs", "REPORTs", "feedback / data")
    table = rich.table.Table(*headings, title=title, title_justify="left")
    for one in (alone, crowd):
        table.add_row(
            str(one.receiver_count),
            f"{one.seconds:.2f}",
            f"{one.seconds / alone.seconds:.3f}",
            f"{one.sent_ratio:.3f}",
            str(one.nack_count),
            str(one.report_count),
            f"{one.feedback_share:.2%}",
        )
    console.print(table)


def _print_replay(console: rich.console.Console, cast: SimulatedCast) -> None:
    session, path = session_cost(cast), path_cost(cast)
    count = len(cast.receivers)
    table = rich.table.Table(
        "feedback path", "", title=f"feedback of {count} receivers, replayed", title_justify="left"
    )
    table.add_row("session, per REPORT", f"{session.report_us:.0f} µs")
    table.add_row("session, per NACK", f"{session.nack_us:.0f} µs")
    table.add_row("socket, event loop, lock and session, per datagram", f"{path.cpu_us:.0f} µs")
    table.add_row("share of one core in this cast", f"{path.cpu_share:.1%}")
    table.add_row(
        "datagrams, of them dropped by the socket",
        f"{path.sent_count}, {path.sent_count - path.datagram_count}",
    )
    console.print(table)


def _print_shared_losses(
    console: rich.console.Console, receiver_count: int, block_count: int, seed: int
) -> None:
    times = tuple(_EVENT_INTERVAL_S * (1 + index) for index in range(_EVENTS_MAX))
    cast = SimulatedCast(
        room(receiver_count, block_count, lost_calls_at=times, rate_bytes_per_s=_FIXED_BYTES_PER_S, seed=seed)
    ).run()
    result = figures(cast)
    lost = cast.uplink.lost_calls_count
    table = rich.table.Table(
        "shared losses",
        "",
        title=f"a super-datagram lost by all {receiver_count}, now and then",
        title_justify="left",
    )
    table.add_row("loss events", str(lost))
    table.add_row("NACK datagrams per event", f"{result.nack_count / max(1, lost):.1f}")
    table.add_row("seconds", f"{result.seconds:.2f}")
    table.add_row("sent / source", f"{result.sent_ratio:.3f}")
    table.add_row("feedback / data", f"{result.feedback_share:.2%}")
    console.print(table)


def _print_control(console: rich.console.Console, receiver_count: int) -> None:
    load = measure(receiver_count)
    table = rich.table.Table(
        "control API", "s", title=f"{receiver_count} receivers over TLS", title_justify="left"
    )
    table.add_row("all joined", f"{load.joined_s:.2f}")
    table.add_row("all reported the blocks they need", f"{load.needs_s:.2f}")
    table.add_row("all reported completion", f"{load.completed_s:.2f}")
    table.add_row("sender's CPU time for the joins", f"{load.join_cpu_s:.2f}")
    table.add_row("sender's CPU time", f"{load.sender_cpu_s:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
