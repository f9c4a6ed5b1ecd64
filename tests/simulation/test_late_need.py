"""A receiver that had every block and then misses one: it gets it again, or fails.

Lost if these fail: a machine whose disk lies once waits for ever, or a room's cast never ends because of it.
"""

from __future__ import annotations

import pytest

from protocol.model.cast_policy import SlowPolicy
from protocol.model.cast_state import CastState, SessionOutcome
from protocol.model.session_records import ReceiverState
from protocol.receiving.events import (
    CastEnded,
    SenderSilent,
)
from tests.simulation.world import Path, Scenario, SimulatedReceiver, World
from tests.support.network.completion_reports import completion

BLOCKS = 40


def _world(*losses: float, seed: int = 1, **policy: object) -> World:
    """A room in which each receiver has a last step after all blocks are verified."""
    paths = [Path(loss=loss) for loss in losses]
    world = World(Scenario(seed, block_count=BLOCKS, paths=paths, wait_for=len(paths), policy=policy))
    for receiver in world.receivers:
        receiver.lingers = True
    return world


def _state(receiver: SimulatedReceiver) -> ReceiverState:
    assert receiver.session is not None
    return receiver.world.sender.receivers[receiver.session.grant.receiver_id].state


def _needed_as_told(receiver: SimulatedReceiver) -> int | None:
    assert receiver.session is not None
    return receiver.world.sender.receivers[receiver.session.grant.receiver_id].needed_count


def _until_all_say_that_they_need_nothing(world: World) -> None:
    def reached() -> bool:
        active = [r for r in world.receivers if r.session is not None and _state(r).active]
        return bool(active) and all(_needed_as_told(receiver) == 0 for receiver in active)

    world.run_until(reached)
    world.run_for(3.0)  # the sender has long been idle
    assert world.sender.image_demand.idle


def _first_stored(world: World) -> int:
    return next(block for block, stored in enumerate(world.image.stored) if stored)


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("late_count", [1, BLOCKS])
def test_who_reported_that_it_needs_nothing_is_served_when_it_asks_again(
    loss: float, late_count: int
) -> None:
    world = _world(loss, loss)
    first, second = world.receivers
    _until_all_say_that_they_need_nothing(world)
    second.lingers = False
    world.run_until(lambda: _state(second) is ReceiverState.COMPLETE)
    world.run_for(1.0)
    for block in [block for block, stored in enumerate(world.image.stored) if stored][:late_count]:
        first.turn_bad(block)
    first.lingers = False
    world.run()
    assert first.complete
    assert first.holds_image()
    assert world.sender.outcome == SessionOutcome.COMPLETE


def test_it_is_served_after_a_report_that_still_says_that_it_needs_nothing() -> None:
    """The report is older than the request: the request counts."""
    world = _world(0.0)
    (receiver,) = world.receivers
    _until_all_say_that_they_need_nothing(world)
    session = receiver.session
    assert session is not None
    session.datagrams_to_send(world.now)
    outdated = session.report(world.now)
    receiver.turn_bad(_first_stored(world))
    (nack, *_) = session.datagrams_to_send(world.now + 0.05)
    for datagram in (nack, outdated):
        world.sender.receive_feedback_untrusted(datagram, world.now)
    assert world.sender.image_demand.repair_block_count == 1
    receiver.lingers = False
    assert world.run().receivers[0].holds_image()


def test_what_one_needs_again_is_sent_though_another_says_that_it_needs_nothing() -> None:
    """Reports of other receivers don't withdraw the request."""
    world = _world(0.0, 0.1, 0.1)
    _until_all_say_that_they_need_nothing(world)
    block = _first_stored(world)
    for receiver in world.receivers[:2]:
        receiver.turn_bad(block)
    for receiver in world.receivers:
        receiver.lingers = False
    world.run()
    assert all(receiver.complete and receiver.holds_image() for receiver in world.receivers)


def test_a_block_that_turns_bad_in_a_pause_is_sent_when_the_cast_goes_on() -> None:
    world = _world(0.0)
    (receiver,) = world.receivers
    _until_all_say_that_they_need_nothing(world)
    world.sender.pause()
    receiver.turn_bad(_first_stored(world))
    receiver.lingers = False
    world.run_for(20.0)
    assert not receiver.complete
    assert _state(receiver) is ReceiverState.RECEIVING
    world.sender.resume(world.now)
    assert world.run().receivers[0].holds_image()


# -- stragglers -------------------------------------------------------------------------------------------------


def _with_straggler(**policy: object) -> tuple[World, SimulatedReceiver, SimulatedReceiver]:
    """A receiver that hears next to nothing until it is demoted or dropped, beside one that continues."""
    world = _world(0.0, 0.0, 0.9, slow_for_s=0.5, **policy)
    fast, second, slow = world.receivers
    slow.path.loss_back = 0.0
    second.lingers = False
    record = world.sender.receivers
    world.run_until(lambda: any(r.demoted or r.state is ReceiverState.DROPPED for r in record.values()))
    slow.path.loss = 0.0
    return world, fast, slow


def test_in_the_tail_a_straggler_that_needed_nothing_any_more_is_served() -> None:
    world, fast, slow = _with_straggler()
    fast.lingers = False
    world.run_until(lambda: _state(fast) is ReceiverState.COMPLETE)
    _until_all_say_that_they_need_nothing(world)
    slow.turn_bad(_first_stored(world))
    slow.lingers = False
    world.run()
    assert slow.complete
    assert slow.holds_image()


def test_one_of_the_main_group_is_served_while_a_straggler_waits_and_then_the_straggler() -> None:
    world, fast, slow = _with_straggler()
    world.run_until(lambda: _needed_as_told(fast) == 0)
    world.run_for(1.0)
    fast.turn_bad(_first_stored(world))
    fast.lingers = slow.lingers = False
    world.run()
    assert fast.complete
    assert fast.holds_image()
    assert slow.complete
    assert slow.holds_image()


def test_a_dropped_one_is_told_and_never_counts_as_complete() -> None:
    world, fast, slow = _with_straggler(slow_policy=SlowPolicy.DROP)
    world.run_until(lambda: slow.dropped)
    sent_count = world.sender.image_demand.sent_repair_count
    world.run_for(2.0)
    assert world.sender.image_demand.sent_repair_count == sent_count, "nobody works for it any more"
    fast.lingers = slow.lingers = False
    world.run()
    assert fast.complete
    assert not slow.complete
    assert _state(slow) is ReceiverState.DROPPED


def test_a_machine_that_was_dropped_and_started_again_is_served_to_its_end() -> None:
    world, fast, slow = _with_straggler(slow_policy=SlowPolicy.DROP)
    world.run_until(lambda: slow.dropped)
    slow.agent_id, slow.dropped, slow.lingers = "another run", False, False
    slow.join()
    fast.lingers = False
    world.run()
    assert slow.complete
    assert slow.holds_image()
    assert _state(slow) is ReceiverState.COMPLETE


# -- the end ----------------------------------------------------------------------------------------------------


def test_who_lacks_a_block_after_the_end_knows_that_the_cast_is_over() -> None:
    """It must neither wait for a block that doesn't come nor report its disk as complete."""
    world = _world(0.0, 0.0)
    first, second = world.receivers
    _until_all_say_that_they_need_nothing(world)
    second.lingers = False
    world.run_until(lambda: _state(second) is ReceiverState.COMPLETE)
    world.sender.end(SessionOutcome.CANCELLED, "the lesson begins", world.now)
    first.turn_bad(_first_stored(world))
    first.lingers = False
    world.run()
    assert first.ended == CastEnded(SessionOutcome.CANCELLED, "the lesson begins")
    assert not first.complete
    assert _state(first) is ReceiverState.RECEIVING
    assert world.sender.state == CastState.ENDED
    assert world.sender.image_demand.idle, "nothing is planned any more"


def test_who_missed_the_end_notices_the_silence() -> None:
    """All five copies of EOT can be lost; the agent's deadline then needs to know that the sender is silent."""
    world = _world(0.0)
    (receiver,) = world.receivers
    _until_all_say_that_they_need_nothing(world)
    receiver.path.loss = 1.0
    world.sender.end(SessionOutcome.CANCELLED, "", world.now)
    receiver.turn_bad(_first_stored(world))
    world.run()
    session = receiver.session
    assert session is not None
    session.datagrams_to_send(world.now + 40.0)
    assert any(isinstance(event, SenderSilent) and event.silent_s > 30 for event in session.next_events())
    assert not receiver.complete


def test_who_completes_after_all_is_recorded_though_the_cast_has_ended() -> None:
    world = _world(0.0)
    (receiver,) = world.receivers
    _until_all_say_that_they_need_nothing(world)
    world.sender.end(SessionOutcome.CANCELLED, "", world.now)
    assert receiver.session is not None
    world.sender.complete(receiver.session.grant.receiver_id, completion(), world.now)
    assert _state(receiver) is ReceiverState.COMPLETE
    assert world.run().sender.outcome == SessionOutcome.CANCELLED
