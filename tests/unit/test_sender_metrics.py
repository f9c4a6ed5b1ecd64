"""Metrics of a cast say what the session knows: an operator's alarm on a straggler hangs on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from protocol.limiter import Cause, Limiter
from sender.feedback import FeedbackPort
from sender.metrics_server import CastCollector
from sender.network import find_interface, parse_group
from sender.sockets import bind_control_sockets
from sender.transmitter import LATENESS_BOUNDS_S, TransmitterStatistics
from tests.completion_reports import completion
from tests.shell.sender_rig import Rig, make_rig

Scrape = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = make_rig(tmp_path)
    with made.image:
        yield made


@pytest.fixture
def feedback(rig: Rig) -> Iterator[FeedbackPort]:
    lo = find_interface("lo")
    control, sock = bind_control_sockets(None, 0, lo, lo.address_for(parse_group("239.255.68.98")))
    with control, sock:
        yield FeedbackPort(sock, rig.shared)


def scrape(rig: Rig, feedback: FeedbackPort, transmitter: TransmitterStatistics | None = None) -> Scrape:
    """Every sample that Prometheus would read."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(CastCollector(rig.shared, transmitter or TransmitterStatistics(), feedback))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Scrape, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_the_limiter_is_named_with_its_receiver_and_its_time_counted(
    rig: Rig, feedback: FeedbackPort
) -> None:
    grant = rig.start_casting()
    rig.session.limiter_seconds = {
        Limiter(Cause.DISK, grant.receiver_id): 2.5,
        Limiter(Cause.NETWORK): 1.5,
    }
    samples = scrape(rig, feedback)
    [active] = [labels for name, labels in samples if name == "diskcast_limiter"]
    assert dict(active)["cause"] == rig.session.limiter.cause
    name = "diskcast_limiter_seconds_total"
    assert value(samples, name, cause="disk", receiver="pc-1") == 2.5
    assert value(samples, name, cause="network", receiver="") == 1.5
    from_the_start = {dict(labels)["cause"] for found, labels in samples if found == name}
    assert from_the_start == set(Cause), "a counter that appears later has no first increase"


def test_stragglers_are_marked_and_what_they_could_take_is_infinite_until_it_is_known(
    rig: Rig, feedback: FeedbackPort
) -> None:
    rig.start_casting()
    rig.join("pc-2", "agent-2")
    fast, straggler = rig.session.receivers.values()
    straggler.demoted, straggler.slow_since, straggler.sustainable_bytes_per_s = True, 1.0, 5e5
    straggler.queue_delay_s = 0.25
    straggler.expected_count, straggler.received_count, straggler.loss_event_count = 100, 56, 1
    samples = scrape(rig, feedback)
    rate = "diskcast_receiver_sustainable_rate_bytes_per_second"
    assert value(samples, rate, receiver=fast.name) == math.inf
    assert value(samples, rate, receiver=straggler.name) == 5e5
    assert value(samples, "diskcast_receiver_demoted", receiver=straggler.name) == 1
    assert value(samples, "diskcast_receiver_demoted", receiver=fast.name) == 0
    assert value(samples, "diskcast_receiver_slow", receiver=straggler.name) == 1
    assert value(samples, "diskcast_receiver_queue_delay_seconds", receiver=straggler.name) == 0.25
    assert value(samples, "diskcast_receiver_loss_burst_datagrams", receiver=straggler.name) == 44
    assert value(samples, "diskcast_interleave_depth_blocks") == 1


def test_histograms_are_cumulative_and_count_everything(rig: Rig, feedback: FeedbackPort) -> None:
    grant = rig.start_casting()
    with rig.shared.change() as (session, now):
        session.complete(grant.receiver_id, completion(), now)
    transmitter = TransmitterStatistics()
    for late_s in (0.0, 75e-6, 1.0):
        transmitter.burst_lateness.add(late_s)
    samples = scrape(rig, feedback, transmitter)
    buckets = [
        value(samples, "diskcast_burst_lateness_seconds_bucket", le=str(bound)) for bound in LATENESS_BOUNDS_S
    ]
    assert buckets == [1.0, *[2.0] * (len(LATENESS_BOUNDS_S) - 1)]
    assert value(samples, "diskcast_burst_lateness_seconds_bucket", le="+Inf") == 3
    assert value(samples, "diskcast_burst_lateness_seconds_count") == 3
    assert value(samples, "diskcast_burst_lateness_seconds_sum") == pytest.approx(1.000075)
    assert value(samples, "diskcast_receiver_completion_seconds_bucket", le="5.0") == 0
    assert value(samples, "diskcast_receiver_completion_seconds_bucket", le="10.0") == 1
