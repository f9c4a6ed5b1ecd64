"""A receiver that hears its sender and gets nothing: it recovers if it can, and otherwise the room doesn't wait for it.

Lost if these fail: a cast that never ends, or one that gives up machines while it is paused.
"""

from __future__ import annotations

import pytest

from protocol.constants import ANNOUNCE_INTERVAL_S, PROGRESS_TIMEOUT_S
from protocol.model.cast_state import CastState
from protocol.model.session_records import ReceiverState
from protocol.wire.feedback_codec import decode_feedback_untrusted
from protocol.wire.messages import Nack
from tests.simulation.world import Path, Scenario, SimulatedReceiver, World


def _is_nack(datagram: bytes) -> bool:
    return isinstance(decode_feedback_untrusted(datagram)[1], Nack)


def _world(unlucky: Path, seed: int = 1) -> World:
    return World(Scenario(seed, block_count=20, paths=[unlucky, Path()], wait_for=2))


def _state(receiver: SimulatedReceiver) -> ReceiverState:
    assert receiver.session is not None
    return receiver.world.sender.receivers[receiver.session.grant.receiver_id].state


def _cut_off(world: World, **changes: object) -> None:
    """Change the first receiver's path once image data flows."""
    world.run_until(lambda: world.sender.state is CastState.CASTING)
    for name, value in changes.items():
        setattr(world.receivers[0].path, name, value)


def _assert_given_up(world: World, *, no_data: bool) -> None:
    started_at = world.now
    world.run()
    unlucky, other = world.receivers
    assert other.complete
    assert unlucky.not_served is not None
    assert unlucky.not_served.no_data == no_data
    assert _state(unlucky) is ReceiverState.FAILED, "the sender knows the reason"
    assert world.now - started_at < 2 * PROGRESS_TIMEOUT_S


def test_a_machine_without_data_gives_up() -> None:
    """A switch that drops datagrams of full size and passes announcements: every NACK is answered, for nothing."""
    world = _world(Path())
    _cut_off(world, loses_data=True)
    _assert_given_up(world, no_data=True)


def test_a_machine_without_data_from_the_start_gives_up() -> None:
    _assert_given_up(_world(Path(loses_data=True)), no_data=True)


def test_a_machine_whose_nacks_are_lost_gives_up() -> None:
    """A firewall that drops some datagrams: reports keep the machine alive at the sender."""
    world = _world(Path(loss=0.2, loss_back=0.0))
    _cut_off(world, loses_feedback=_is_nack)
    _assert_given_up(world, no_data=False)


@pytest.mark.parametrize("lossy", [0.0, 0.2])
def test_a_pause_costs_no_machine_and_no_repairs(lossy: float) -> None:
    """Announcements go on without data here, too, for as long as the operator likes."""
    world = _world(Path(loss=lossy))
    world.run_until(
        lambda: world.sender.state is CastState.CASTING and world.sender.image_demand.progress > 0.3
    )
    world.sender.pause()
    nacks_before_count = world.sender.statistics.nacks_received_count
    world.run_for(2 * PROGRESS_TIMEOUT_S)
    nacks_count = world.sender.statistics.nacks_received_count - nacks_before_count
    world.sender.resume(world.now)
    world.run()
    assert all(receiver.complete for receiver in world.receivers)
    assert nacks_count <= 2 * 2 * PROGRESS_TIMEOUT_S / ANNOUNCE_INTERVAL_S + 4
    if not lossy:
        assert world.sender.image_demand.sent_repair_count == 0
