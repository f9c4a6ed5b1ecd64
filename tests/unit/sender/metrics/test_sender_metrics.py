"""Metrics of a cast match its session: an operator's alerts depend on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from protocol.model.bottleneck import Bottleneck, Cause
from protocol.model.cast_state import SessionOutcome
from protocol.model.session_records import ReceiverState
from sender.addresses import parse_group
from sender.cast.network.interfaces import find_interface
from sender.cast.network.sockets import bind_control_sockets
from sender.cast.session.feedback import FeedbackPort
from sender.cast.session.locked_session import LockedSession
from sender.cast.transmission.transmitter import LATENESS_BOUNDS_S, TransmitterStatistics
from sender.metrics.cast_collector import CastsCollector, SingleCastCollector
from sender.metrics.metric import CAST_LABELS
from tests.shell.sender_rig import Rig, make_rig
from tests.support.network.completion_reports import completion

CAST = {"cast": "1234abcd", "image": "made", "room": ""}
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
        yield FeedbackPort(sock, rig.locked_session)


def scrape(rig: Rig, feedback: FeedbackPort, transmitter: TransmitterStatistics | None = None) -> Scrape:
    """Return every sample of a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        SingleCastCollector(rig.locked_session, transmitter or TransmitterStatistics(), feedback)
    )
    families = text_string_to_metric_families(generate_latest(registry).decode())
    found = {}
    for family in families:
        for sample in family.samples:
            labels = dict(sample.labels)
            assert {name: labels.pop(name) for name in CAST_LABELS} == CAST
            found[sample.name, frozenset(labels.items())] = sample.value
    return found


def value(samples: Scrape, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_the_bottleneck_is_named_with_its_receiver_and_its_time_counted(
    rig: Rig, feedback: FeedbackPort
) -> None:
    grant = rig.start_casting()
    rig.session.bottleneck_seconds.update(
        {
            Bottleneck(Cause.DISK, grant.receiver_id): 2.5,
            Bottleneck(Cause.NETWORK): 1.5,
        }
    )
    samples = scrape(rig, feedback)
    [active] = [labels for name, labels in samples if name == "diskcast_bottleneck"]
    assert dict(active)["cause"] == rig.session.bottleneck.cause
    name = "diskcast_bottleneck_seconds_total"
    assert value(samples, name, cause="disk", machine="pc-1") == 2.5
    assert value(samples, name, cause="network", machine="") == 1.5
    from_the_start = {dict(labels)["cause"] for found, labels in samples if found == name}
    assert from_the_start == set(Cause), "a counter that appears later has no first increase"


def test_stragglers_are_marked_and_an_unknown_sustainable_rate_is_infinite(
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
    assert value(samples, rate, machine=fast.name) == math.inf
    assert value(samples, rate, machine=straggler.name) == 5e5
    assert value(samples, "diskcast_receiver_demoted", machine=straggler.name) == 1
    assert value(samples, "diskcast_receiver_demoted", machine=fast.name) == 0
    assert value(samples, "diskcast_receiver_slow", machine=straggler.name) == 1
    assert value(samples, "diskcast_receiver_queue_delay_seconds", machine=straggler.name) == 0.25
    assert value(samples, "diskcast_receiver_loss_burst_datagrams", machine=straggler.name) == 44
    assert value(samples, "diskcast_interleave_depth_blocks") == 1


def test_histograms_are_cumulative_and_count_everything(rig: Rig, feedback: FeedbackPort) -> None:
    grant = rig.start_casting()
    with rig.locked_session.update() as (session, now):
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


def test_failures_of_machines_are_distinguished_by_cause(rig: Rig, feedback: FeedbackPort) -> None:
    """Each cause needs a different fix: a new disk, a larger one, or a cable."""
    rig.start_casting()
    ends = {"pc-2": 51, "pc-3": 50, "pc-4": 31, "pc-5": 42, "pc-6": 43, "pc-7": 1}
    for name, exit_code in ends.items():
        grant = rig.join(name, name)
        report = dataclasses.replace(completion(success=False, error="no"), exit_code=exit_code)
        with rig.locked_session.update() as (session, now):
            session.complete(grant.receiver_id, report, now)
    for name, state in (("pc-8", ReceiverState.LOST), ("pc-9", ReceiverState.DROPPED)):
        rig.session.receivers[rig.join(name, name).receiver_id].state = state
    samples = scrape(rig, feedback)
    causes = {
        dict(labels)["machine"]: dict(labels)["cause"]
        for name, labels in samples
        if name == "diskcast_receiver_failed"
    }
    assert causes == {
        "pc-2": "verification",
        "pc-3": "storage",
        "pc-4": "target",
        "pc-5": "session",
        "pc-6": "cancelled",
        "pc-7": "other",
        "pc-8": "lost",
        "pc-9": "dropped",
    }
    assert value(samples, "diskcast_receiver_failures", cause="lost") == 1
    assert value(samples, "diskcast_receiver_rewritten_blocks", machine="pc-2") == 7
    assert value(samples, "diskcast_receiver_rewritten_blocks", machine="pc-1") == 0
    rig.join("pc-2", "pc-2 again")
    assert ("pc-2", "verification") not in {
        (dict(labels)["machine"], dict(labels)["cause"])
        for name, labels in scrape(rig, feedback)
        if name == "diskcast_receiver_failed"
    }


def test_an_ended_cast_has_an_outcome_and_no_bottleneck(rig: Rig, feedback: FeedbackPort) -> None:
    """The last report of a machine stays; alerts check that the machine is active."""
    rig.start_casting()
    running = scrape(rig, feedback)
    assert value(running, "diskcast_receiver_bottleneck", machine="pc-1", bottleneck="network") == 1
    assert value(running, "diskcast_receiver_state", machine="pc-1", state="receiving") == 1
    assert "diskcast_cast_outcome" not in {name for name, _ in running}
    with rig.locked_session.update() as (session, now):
        session.end(SessionOutcome.FAILED, "the image's disk", now)
    ended = scrape(rig, feedback)
    assert value(ended, "diskcast_cast_outcome", outcome="failed") == 1
    assert value(ended, "diskcast_cast_state", state="ended") == 1
    assert "diskcast_receiver_bottleneck" not in {name for name, _ in ended}
    elapsed_s = value(ended, "diskcast_cast_elapsed_seconds")
    assert elapsed_s == value(scrape(rig, feedback), "diskcast_cast_elapsed_seconds") >= 0


@dataclasses.dataclass
class OfRoom:
    """One of several casts of a daemon."""

    locked_session: LockedSession
    feedback: FeedbackPort
    room_id: str | None
    transmitter: TransmitterStatistics = dataclasses.field(default_factory=TransmitterStatistics)


def test_several_casts_share_families_with_their_own_labels(rig: Rig, feedback: FeedbackPort) -> None:
    """A family that occurs twice would be an error that ends the scrape."""
    rig.start_casting()
    casts = [OfRoom(rig.locked_session, feedback, "lab-1"), OfRoom(rig.locked_session, feedback, None)]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(CastsCollector(lambda: casts))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    rooms = {sample.labels["room"] for family in families for sample in family.samples}
    assert rooms == {"lab-1", ""}
    casts.clear()
    assert "{" not in generate_latest(registry).decode(), "casts that are over for long leave nothing"


def test_a_room_of_five_hundred_in_four_casts_fits_into_a_scrape(rig: Rig, feedback: FeedbackPort) -> None:
    """Prometheus drops scrapes that are too large; the documented limit is 5 MB."""
    rig.start_casting()
    for number in range(2, 501):
        rig.join(f"lab-2-machine-{number:03}", f"agent-{number}")
    casts = [OfRoom(rig.locked_session, feedback, f"room-{number}") for number in range(4)]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(CastsCollector(lambda: casts))
    assert len(generate_latest(registry)) < 5e6
