"""Scenarios of the automatic rate: shaped links, loss, many receivers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from tests.bench import ours, peers
from tests.bench.figures import Figure
from tests.bench.kept_memory import touch_memory
from tests.bench.measurement import Measurement
from tests.bench.room import Bench, Image, lost_share
from tests.support.network.lab import Network, PortCounters

RECEIVER_COUNT = 4
SETTLING_S = 2.0
"""Time to find the limit; loss counts only after it."""
BURST_EVERY = 20
PEER_LIMIT_S = 60.0


def shaped(bench: Bench, image: Image, mbit_per_s: int) -> Iterator[Figure]:
    """Measure receivers behind ports of the same rate."""
    name = f"shaped-{mbit_per_s}"
    with Network(RECEIVER_COUNT) as network:
        network.set_rate(mbit_per_s)
        with bench.cast(network, image) as cast:
            cast.wait_until(SETTLING_S)
            before, before_s = network.port_counters(), cast.now_s()
            record = cast.finish()
        after = network.port_counters()
    settled = record.last_completed_s > before_s
    goodput_mbit_per_s = image.raw_bytes * 8e-6 / record.seconds
    yield Figure(
        name,
        "goodput of the link's rate",
        100 * goodput_mbit_per_s / mbit_per_s,
        "%",
        at_least=93.0,
        note=f"{goodput_mbit_per_s:.1f} Mbit/s; {record.symbols_sent_ratio:.3f} symbols sent per source symbol",
    )
    losses = [lost_share(*pair) for pair in zip(before, after, strict=True)]
    yield Figure(
        name,
        f"lost at the ports after {SETTLING_S:g} s",
        100 * max(losses) if settled else math.nan,
        "%",
        at_most=2.0,
        note=f"{100 * _whole_loss(after):.2g} % in the whole cast" if settled else "the cast ended before",
    )
    busy = [
        _link_use(*pair, record.last_completed_s - before_s, mbit_per_s)
        for pair in zip(before, after, strict=True)
    ]
    yield Figure(name, "link utilisation then", 100 * min(busy) if settled else math.nan, "%")


def shaped_peers(bench: Bench, image: Image, mbit_per_s: int) -> Iterator[Figure]:
    """Measure the other installed programs on the same links, from start to end of the process."""

    def measured(cast: Callable[[Network], Measurement]) -> Measurement:
        with Network(RECEIVER_COUNT) as network:
            network.set_rate(mbit_per_s)
            touch_memory(bench.folder, RECEIVER_COUNT * image.raw_bytes)
            one = cast(network)
        bench.say(f"  {one.program} {one.failure or f'{one.wall_s:.1f} s'}")
        return one

    reference = measured(lambda network: ours.cast_diskcast(network, image.raw, image.packed, PEER_LIMIT_S))
    others: list[Callable[[Network], Measurement]] = []
    if peers.udpcast_version() is not None:
        others.append(
            lambda network: peers.cast_udpcast(network, image.raw, lossy=False, limit_s=PEER_LIMIT_S)
        )
    if peers.uftp_version() is not None:
        others.append(lambda network: peers.cast_uftp(network, image.raw, PEER_LIMIT_S))
    for one in map(measured, others):
        yield Figure(
            f"peers-{mbit_per_s}",
            f"time of {one.program} / time of diskcast",
            one.wall_s / reference.wall_s,
            note=one.failure or f"{one.wall_s:.1f} s against {reference.wall_s:.1f} s",
        )


def random_loss(bench: Bench, image: Image, percent: int, at_least_percent: float) -> Iterator[Figure]:
    """Compare random loss at every receiver with none."""

    def seconds(permille: int) -> float:
        with Network(RECEIVER_COUNT) as network:
            network.set_offload(False)
            network.set_loss(permille, keep_filter=True)
            with bench.cast(network, image) as cast:
                return cast.finish().seconds

    clean_s, lossy_s = bench.alternate(lambda: seconds(0), lambda: seconds(percent * 10))
    yield Figure(
        f"loss-{percent}",
        "goodput of that without loss",
        100 * clean_s / lossy_s,
        "%",
        at_least=at_least_percent,
        note=f"{image.raw_bytes * 8e-6 / lossy_s:.0f} against {image.raw_bytes * 8e-6 / clean_s:.0f} Mbit/s",
    )


def burst_loss(bench: Bench, image: Image) -> Iterator[Figure]:
    """Compare the loss of every 20th super-datagram with none."""
    sent_ratios: list[float] = []

    def seconds(every: int) -> float:
        with Network(RECEIVER_COUNT) as network:
            network.set_offload(True)
            network.drop_every(every)
            with bench.cast(network, image) as cast:
                record = cast.finish()
        if every:
            sent_ratios.append(record.symbols_sent_ratio)
        return record.seconds

    clean_s, lossy_s = bench.alternate(lambda: seconds(0), lambda: seconds(BURST_EVERY))
    yield Figure("burst-loss", "symbols sent per source symbol", max(sent_ratios), at_most=1.15)
    yield Figure(
        "burst-loss",
        "time against that without loss",
        lossy_s / clean_s,
        at_most=1.3,
        note=f"{lossy_s:.2f} s against {clean_s:.2f} s",
    )


def scale(bench: Bench, image: Image, receiver_count: int, mbit_per_s: int) -> Iterator[Figure]:
    """Compare many receivers with one, every port shaped."""

    def seconds(count: int) -> float:
        with Network(count) as network:
            network.set_rate(mbit_per_s)
            with bench.cast(network, image) as cast:
                return cast.finish().seconds

    one_s, many_s = bench.alternate(lambda: seconds(1), lambda: seconds(receiver_count))
    yield Figure(
        f"scale-{receiver_count}",
        f"time with {receiver_count} receivers / time with one",
        many_s / one_s,
        at_most=1.10,
        note=f"{many_s:.2f} s against {one_s:.2f} s at {mbit_per_s} Mbit/s",
    )


def _whole_loss(after: list[PortCounters]) -> float:
    nothing = PortCounters(0, 0, 0, 0)
    return max(lost_share(nothing, one) for one in after)


def _link_use(before: PortCounters, after: PortCounters, seconds: float, mbit_per_s: int) -> float:
    return (after.link_bytes - before.link_bytes) * 8e-6 / seconds / mbit_per_s
