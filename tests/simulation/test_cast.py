"""Real sessions through a terrible network: every receiver that survives has the image.

Lost if these fail: casts that hang, receivers that call a wrong disk complete, or repair that floods the network.
"""

from __future__ import annotations

import os

import pytest

from protocol.model.session_records import ReceiverState
from tests.simulation.world import Path, Scenario, World

SEEDS_PER_TEST = 150
SEED_COUNT = int(os.environ.get("DISKCAST_SEED_COUNT", "600"))
"""Casts of a test run; ``make soak`` simulates ten times as many."""


@pytest.mark.parametrize("first_seed", range(0, SEED_COUNT, SEEDS_PER_TEST))
def test_terrible_network(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + SEEDS_PER_TEST):
        world = World(Scenario.draw(seed)).run()
        for receiver in world.receivers:
            if receiver.complete:
                assert receiver.holds_image(), f"seed {seed}: receiver {receiver.index} holds a wrong image"
            elif receiver.alive and receiver.session is not None:
                pytest.fail(f"seed {seed}: receiver {receiver.index} didn't complete, {world.describe()}")
        for record in world.sender.receivers.values():
            if record.state is ReceiverState.COMPLETE:
                index = int(record.agent_id.removeprefix("agent"))
                assert world.receivers[index].holds_image(), f"seed {seed}: {record.name}"


def test_one_seed_is_one_trace() -> None:
    traces = {World(Scenario.draw(11)).run().trace.hexdigest() for _ in range(2)}
    assert len(traces) == 1
    assert World(Scenario.draw(12)).run().trace.hexdigest() not in traces


def _sent_ratio(world: World) -> float:
    source = int(world.image.manifest.source_symbols(64).astype(int).sum())
    manifest = -(-len(world.image.manifest.data) // 64)
    return world.symbols_sent / (source + manifest)


def _scenario(seed: int, loss: float, count: int, **changes: object) -> Scenario:
    scenario = Scenario(seed, block_count=60, paths=[Path(loss=loss) for _ in range(count)], wait_for=count)
    for name, value in changes.items():
        setattr(scenario, name, value)
    return scenario


def test_without_loss_nothing_is_sent_twice() -> None:
    assert _sent_ratio(World(_scenario(1, 0.0, 4)).run()) == 1.0


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.2])
def test_repair_is_frugal(loss: float) -> None:
    """Blocks of at most 30 symbols pay more for the unluckiest receiver than real ones of 183 do."""
    world = World(_scenario(2, loss, 4)).run()
    assert all(receiver.holds_image() for receiver in world.receivers)
    assert _sent_ratio(world) <= 1.5 / (1 - loss)


def test_a_dead_receiver_costs_nothing() -> None:
    alone = World(_scenario(3, 0.05, 3)).run()
    with_dead = World(_scenario(3, 0.05, 4, die_at=[None, None, None, 0.1], rate_bytes_per_s=400_000.0)).run()
    states = [record.state for record in with_dead.sender.receivers.values()]
    assert states.count(ReceiverState.COMPLETE) == 3
    assert states.count(ReceiverState.LOST) == 1
    assert _sent_ratio(with_dead) <= _sent_ratio(alone) * 1.1


def test_a_late_joiner_costs_one_partial_pass() -> None:
    scenario = _scenario(4, 0.0, 2, wait_for=1, join_at=[0.0, 0.12], block_count=200)
    world = World(scenario).run()
    assert all(receiver.holds_image() for receiver in world.receivers)
    assert world.sender.image_demand.pass_index == 1
    assert 1.0 < _sent_ratio(world) < 2.0


def test_symbols_of_an_earlier_run_of_the_sender_are_refused() -> None:
    """After a restart, data under the old session token must not be mixed in."""
    scenario = _scenario(5, 0.0, 2, sender_restarts_at=0.1)
    world = World(scenario).run()
    assert all(receiver.holds_image() for receiver in world.receivers)
