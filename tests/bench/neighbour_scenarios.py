"""Scenarios of a link that is shared or changes during the cast."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.bench.figures import Figure
from tests.bench.room import Bench, Cast, Image, lost_share
from tests.support.network.lab import Network, PortCounters, Program

RATE_MBIT_PER_S = 200
STEP_MBIT_PER_S = 50
STEP_DOWN_S, STEP_UP_S, STEP_END_S = 4.0, 10.0, 15.0
SAMPLE_S = 0.1
WINDOW_SAMPLES = 5
"""Samples in the window of a rate: half a second."""
SETTLED_SHARE = 0.9
SETTLED_LOSS = 0.05
TCP_PORT = 5201
TCP_HEAD_START_S = 2.0
"""Seconds that TCP has the link alone: CUBIC fills it within a second."""
TCP_LIMIT_S = 600.0


class Sample(NamedTuple):
    """A sample of a port's counters."""

    at_s: float
    port: PortCounters


def step(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure a link that becomes slower, and fast again."""
    with Network(2) as network:
        network.set_rate(RATE_MBIT_PER_S)
        with bench.cast(network, image) as cast:
            sample_port(cast, STEP_DOWN_S)
            network.set_rate(STEP_MBIT_PER_S)
            down = sample_port(cast, STEP_UP_S)
            network.set_rate(RATE_MBIT_PER_S)
            up = sample_port(cast, STEP_END_S)
            record = cast.finish()
    for change, samples, limit in (
        (f"{RATE_MBIT_PER_S} to {STEP_MBIT_PER_S}", down, STEP_MBIT_PER_S),
        (f"{STEP_MBIT_PER_S} to {RATE_MBIT_PER_S}", up, RATE_MBIT_PER_S),
    ):
        yield Figure(
            "step",
            f"{change} Mbit/s: until {100 * SETTLED_SHARE:g} % of it is delivered",
            reached_s(samples, limit, math.inf),
            "s",
            at_most=3.0,
            note=f"of {samples[-1].at_s - samples[0].at_s:.1f} s measured"
            if samples
            else "the cast ended before",
        )
        yield Figure(
            "step",
            f"{change} Mbit/s: until less than {100 * SETTLED_LOSS:g} % is lost",
            reached_s(samples, limit, SETTLED_LOSS),
            "s",
        )
    yield Figure("step", "symbols sent per source symbol", record.symbols_sent_ratio)


def sample_port(cast: Cast, until_s: float) -> list[Sample]:
    """Return samples of the first receiver's port, every 100 ms until ``until_s`` after the first image data."""
    host = cast.network.receivers[:1]
    samples = [Sample(cast.now_s(), cast.network.port_counters(host)[0])]
    while samples[-1].at_s < until_s and cast.wait_until(samples[-1].at_s + SAMPLE_S):
        samples.append(Sample(cast.now_s(), cast.network.port_counters(host)[0]))
    return samples


def reached_s(samples: list[Sample], mbit_per_s: float, loss_max: float) -> float:
    """Return the time to the end of the first window at 90 % of the rate with so little loss; nan if there is none."""
    for first, last in zip(samples, samples[WINDOW_SAMPLES:], strict=False):
        delivered = (last.port.link_bytes - first.port.link_bytes) * 8e-6 / (last.at_s - first.at_s)
        if delivered >= SETTLED_SHARE * mbit_per_s and lost_share(first.port, last.port) <= loss_max:
            return last.at_s - samples[0].at_s
    return math.nan


def tcp_share(bench: Bench, image: Image) -> Iterator[Figure]:
    """Measure a CUBIC flow to the receiver before and during the cast.

    There is only one receiver: among several, the one with the flow would be a straggler, which is another scenario.
    """
    for variant, options, at_least in (
        ("by default", (), None),
        ("with --share", ("--share",), 25.0),
    ):
        with Network(2) as network:
            receiver, neighbour = network.receivers
            network.set_rate(RATE_MBIT_PER_S, [receiver])
            flow = [sys.executable, "-m", "tests.bench.tcp_flow"]
            sink = network.start(receiver, [*flow, "take", str(TCP_PORT)])
            sink.wait_event("listening", TCP_HEAD_START_S)
            network.start(neighbour, [*flow, "give", receiver.address, str(TCP_PORT)])
            sink.wait_event("taken", TCP_LIMIT_S, lambda event: event["seconds"] >= TCP_HEAD_START_S)
            with bench.cast(network, image, *options, receiver_count=1) as cast:
                started_at = cast.started_at
                record = cast.finish()
            tcp = _mbit_per_s(sink, started_at, started_at + record.last_completed_s)
            before = _mbit_per_s(sink, started_at - TCP_HEAD_START_S, started_at)
        yield Figure(
            "tcp-share",
            f"TCP's share of the link, {variant}",
            100 * tcp / RATE_MBIT_PER_S,
            "%",
            at_least=at_least,
            note=f"TCP {tcp:.0f} Mbit/s, before the cast {before:.0f}; "
            f"cast {image.raw_bytes * 8e-6 / record.seconds:.0f}",
        )


def _mbit_per_s(sink: Program, start_at: float, stop_at: float) -> float:
    taken = [
        (at, int(event["bytes"]))
        for at, event in sink.timeline()
        if event["event"] == "taken" and start_at <= at <= stop_at
    ]
    if len(taken) < 2:
        return math.nan
    (first_at, first_bytes), (last_at, last_bytes) = taken[0], taken[-1]
    return (last_bytes - first_bytes) * 8e-6 / (last_at - first_at)
