"""Speed of casts over simulated links: small versions of the promised bounds, deterministic in simulated time.

If these fail, rooms are slower than their network, one machine or one lossy port holds a room back, or the NACKs of a
thousand machines bring it down.
"""

from __future__ import annotations

import dataclasses
import functools
import random

import pytest

from protocol.constants import MIB
from protocol.model.bottleneck import Cause
from protocol.model.cast_policy import CastPolicy, SlowPolicy
from protocol.sending.events import (
    MainGroupFinished,
    ReceiverDropped,
    ReceiverRecovered,
    ReceiverSlow,
    SenderEvent,
)
from tests.simulation.cast import CastModel, SimulatedCast, TcpModel
from tests.simulation.links import BYTES_PER_S_OF_MBIT, Port, shaped, stepped
from tests.simulation.processor import uneven_paces
from tests.simulation.receivers import ReceiverModel
from tests.simulation.scale import LINK_MBIT_PER_S, ScaleFigures, figures, room
from tests.simulation.scenarios import gigabit
from tests.simulation.traces import Summary, record, summarise

GOODPUT_MIN = 0.93
"""Of the shaped rate: headers and the padding of each block's last symbol leave 94.6 %."""
LOST_MAX = 0.02
MAIN_GROUP_RATIO_MAX = 1.1
NACKS_PER_SHARED_LOSS_MAX = 20
FEEDBACK_MAX = 0.01


def group(count: int, port: Port, image_mib: int, **changes: object) -> CastModel:
    model = CastModel(tuple(ReceiverModel(port) for _ in range(count)), image_bytes=image_mib * MIB)
    return dataclasses.replace(model, **changes)  # type: ignore[arg-type]


def with_another(others: CastModel, receiver: ReceiverModel, **policy: object) -> SimulatedCast:
    """Run the cast to ``others`` with ``receiver`` as the first receiver."""
    model = dataclasses.replace(
        others,
        receivers=(receiver, *others.receivers),
        policy=CastPolicy(**policy),  # type: ignore[arg-type]
    )
    return SimulatedCast(model).run()


@functools.cache
def summary_of(model: CastModel) -> Summary:
    return summarise(record(model))


def main_seconds(cast: SimulatedCast) -> float:
    """Return the time from the first image data to the end of all receivers but the first."""
    ends = [receiver.finished_at for receiver in cast.receivers[1:] if receiver.complete]
    assert len(ends) == len(cast.receivers) - 1
    return max(end for end in ends if end is not None) - (cast.session.statistics.started_at or 0.0)


# -- the network's limit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mbit_per_s", "image_mib"), [(50, 64), (200, 128)])
def test_a_shaped_port_is_filled_and_hardly_anything_lost(mbit_per_s: float, image_mib: int) -> None:
    summary = summary_of(group(2, shaped(mbit_per_s), image_mib))
    assert summary.goodput_share >= GOODPUT_MIN
    assert summary.lost_share <= LOST_MAX
    assert summary.sent_ratio <= 1.06  # at 50 Mbit/s the first 100 ms at 200 are most of it


def test_the_rate_follows_the_link_within_three_seconds() -> None:
    port = stepped([(0.0, 200), (4.0, 50), (9.0, 200)])
    summary = summary_of(group(1, port, 192))
    assert len(summary.reached_s) == 2
    assert max(summary.reached_s) <= 3.0


def test_lost_super_datagrams_cost_little_more_than_themselves() -> None:
    """One of twenty is lost whole: 5.3 % more have to be sent, and some for the time before that is known."""
    summary = summary_of(group(2, shaped(200), 64, uplink=Port(delay_s=0.0, lost_call_period=20)))
    clean = summary_of(group(3, shaped(200), 64))
    assert summary.sent_ratio <= 1.15
    assert summary.seconds <= 1.3 * clean.seconds


def test_with_share_a_tcp_flow_keeps_a_quarter_of_the_link() -> None:
    share = summary_of(
        group(1, shaped(200), 192, policy=CastPolicy(share=True), tcp=(TcpModel(start_s=1.0),))
    )
    assert share.tcp_share >= 0.25
    assert share.goodput_share >= 0.25


# -- stragglers ----------------------------------------------------------------------------------------------


def test_slow_port_holds_no_other_back_and_completes() -> None:
    others = group(3, shaped(200), 64)
    cast = with_another(others, ReceiverModel(shaped(20)))
    assert main_seconds(cast) <= MAIN_GROUP_RATIO_MAX * summary_of(others).seconds
    assert cast.receivers[0].complete
    told = [event for _, event in cast.events if isinstance(event, MainGroupFinished)]
    assert [(event.complete_count, event.straggler_count) for event in told] == [(3, 1)]


def test_slow_port_is_dropped_by_policy() -> None:
    others = group(3, shaped(200), 64)
    cast = with_another(others, ReceiverModel(shaped(20)), slow_policy=SlowPolicy.DROP, slow_for_s=1.0)
    assert main_seconds(cast) <= MAIN_GROUP_RATIO_MAX * summary_of(others).seconds
    assert cast.receivers[0].dropped
    assert not cast.receivers[0].complete
    dropped = [event.cause for _, event in cast.events if isinstance(event, ReceiverDropped)]
    assert dropped == [Cause.NETWORK]


def test_wait_policy_ends_all_together() -> None:
    cast = with_another(group(2, shaped(200), 16), ReceiverModel(shaped(20)), slow_policy=SlowPolicy.WAIT)
    ends = [receiver.finished_at or 0.0 for receiver in cast.receivers]
    assert all(receiver.complete for receiver in cast.receivers)
    assert max(ends) - min(ends) <= 0.15 * (max(ends) - cast.start)


def test_slow_disk_holds_no_other_back_and_is_named() -> None:
    others = group(2, gigabit(), 512)
    cast = with_another(others, ReceiverModel(gigabit(), disk_bytes_per_s=20e6))
    assert main_seconds(cast) <= MAIN_GROUP_RATIO_MAX * summary_of(others).seconds
    assert cast.receivers[0].complete
    slow = [event for _, event in cast.events if isinstance(event, ReceiverSlow)]
    names = {(cast.session.receivers[event.receiver_id].name, event.cause) for event in slow}
    assert names == {("pc0", Cause.DISK)}


# -- slow machines -------------------------------------------------------------------------------------------


def slow_machines(rate_max_bytes_per_s: float | None = None) -> CastModel:
    """Two machines with a slow processor, and buffers as small as the image, so that the cast is short."""
    machine = ReceiverModel(
        gigabit(),
        processor_bytes_per_s=32e6,
        decoder_bytes_per_s=4e6,
        socket_bytes=4e6,
        assembly_bytes=16 * MIB,
    )
    policy = CastPolicy(rate_max_bytes_per_s=rate_max_bytes_per_s)
    return CastModel((machine, machine), image_bytes=48 * MIB, policy=policy)


def test_slow_processors_are_found_and_their_rate_is_held() -> None:
    """A room of old machines must not need an operator who knows their rate."""
    automatic = summary_of(slow_machines())
    fixed_s = min(summary_of(slow_machines(rate)).seconds for rate in (3e6, 3.5e6, 4e6, 5e6))
    assert automatic.seconds <= 1.3 * fixed_s
    assert automatic.socket_lost_share <= LOST_MAX
    assert automatic.slow_changes_max <= 1


def uneven_machines(
    *decoders_bytes_per_s: float, spread: float, image_mib: int, seed: int, stalls: bool = False
) -> CastModel:
    """Machines whose processors have other work, too, and buffers of a machine with little memory."""
    rng = random.Random(seed)
    machines = tuple(
        ReceiverModel(
            gigabit(),
            processor_bytes_per_s=8 * each,
            decoder_bytes_per_s=each,
            paces=uneven_paces(rng, spread=spread, stalls=stalls),
            socket_bytes=20e6,
            assembly_bytes=32 * MIB,
        )
        for each in decoders_bytes_per_s
    )
    return CastModel(machines, image_bytes=image_mib * MIB, seed=seed)


def changes(model: CastModel) -> list[tuple[str, type[SenderEvent]]]:
    """Return the changes of "slow" in a cast, with the receivers' names."""
    cast = SimulatedCast(model).run()
    return [
        (cast.session.receivers[event.receiver_id].name, type(event))
        for _, event in cast.events
        if isinstance(event, ReceiverSlow | ReceiverRecovered)
    ]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            uneven_machines(0.7e6, 0.7e6, spread=0.5, stalls=True, image_mib=72, seed=2), id="2 with stalls"
        ),
        pytest.param(uneven_machines(*[4e6] * 8, spread=0.3, image_mib=96, seed=1), id="8"),
    ],
)
def test_nobody_is_slow_in_a_room_that_is_slow_alike(model: CastModel) -> None:
    """A host that is busy for seconds must not turn repairs off for one of its machines."""
    assert changes(model) == []


def test_a_slow_machine_beside_an_uneven_one_is_reported_once() -> None:
    """Messages that come and go are read by nobody."""
    model = uneven_machines(0.8e6, 4e6, spread=0.3, image_mib=96, seed=2)
    assert changes(model) == [("pc0", ReceiverSlow)]


# -- large rooms ---------------------------------------------------------------------------------------------


def test_sixteen_receivers_take_hardly_longer_than_one() -> None:
    one, sixteen = (summary_of(group(count, shaped(100), 32)) for count in (1, 16))
    assert sixteen.seconds <= 1.1 * one.seconds


@functools.cache
def large_room(receiver_count: int, loss: float) -> ScaleFigures:
    return figures(SimulatedCast(room(receiver_count, 30, loss=loss, rate_bytes_per_s=_room_rate())).run())


def _room_rate() -> float:
    return 0.94 * LINK_MBIT_PER_S * BYTES_PER_S_OF_MBIT


def test_independent_losses_of_a_large_room_cost_little_time_and_feedback() -> None:
    alone, crowd = large_room(1, 0.001), large_room(100, 0.001)
    assert crowd.seconds <= 1.1 * alone.seconds
    assert crowd.feedback_share <= FEEDBACK_MAX


def test_few_receivers_nack_a_loss_of_the_whole_room() -> None:
    lost_at = (0.22, 0.3)
    cast = SimulatedCast(room(200, 20, lost_calls_at=lost_at, rate_bytes_per_s=_room_rate())).run()
    assert cast.uplink.lost_calls_count == len(lost_at)
    result = figures(cast)
    assert result.nack_count <= NACKS_PER_SHARED_LOSS_MAX * len(lost_at)
    assert result.feedback_share <= FEEDBACK_MAX


def test_random_loss_on_a_gigabit_switch_hardly_costs_anything() -> None:
    """A sender that slows down for every noisy cable is slow in every room."""
    clean = summary_of(group(3, gigabit(), 160))
    lossy = summary_of(group(3, gigabit(loss=0.05), 160))
    assert clean.seconds >= 0.8 * lossy.seconds


def test_a_port_with_hardly_a_buffer_is_found() -> None:
    summary = summary_of(group(2, shaped(200, queue_bytes=40_000, burst_bytes=3000), 64))
    assert summary.goodput_share >= 0.85
    assert summary.lost_share <= LOST_MAX
