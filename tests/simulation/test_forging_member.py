"""A member of the group that forges symbols: everybody completes, at little cost.

Lost if these fail: one hostile or broken machine in a room keeps all others from being imaged.
"""

from __future__ import annotations

import pytest

from tests.simulation.world import Path, Scenario, World

PATHS = [Path(), Path(loss=0.01), Path(delay_s=0.02), Path(loss=0.002)]


def _scenario(seed: int, **changes: object) -> Scenario:
    scenario = Scenario(seed, block_count=80, symbols_max=183, paths=PATHS, wait_for=len(PATHS))
    for name, value in changes.items():
        setattr(scenario, name, value)
    return scenario


def _assert_complete(world: World) -> None:
    assert all(receiver.complete and receiver.holds_image() for receiver in world.receivers), world.describe()


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_forging_one_percent_costs_little(encrypted: bool) -> None:
    honest = World(_scenario(1, encrypted=encrypted)).run()
    world = World(_scenario(1, forged_share=0.01, encrypted=encrypted)).run()
    _assert_complete(world)
    assert world.symbols_forged > 50
    assert world.blocks_poisoned > 40
    assert world.symbols_sent <= 1.3 * honest.symbols_sent
    assert world.blocks_served == 0


@pytest.mark.parametrize("ahead", [100, 1000, 100_000])
def test_numbers_ahead_of_the_sender_cost_little(ahead: int) -> None:
    """Blocks on their way would look lost, and each forged symbol would make the sender repeat some hundreds."""
    honest = World(_scenario(1)).run()
    world = World(_scenario(1, forged_share=0.01, forged_ahead=ahead)).run()
    _assert_complete(world)
    assert world.symbols_sent <= 1.3 * honest.symbols_sent


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_one_block_forged_at_every_chance_arrives(encrypted: bool) -> None:
    world = World(_scenario(2, forged_block=20, encrypted=encrypted)).run()
    _assert_complete(world)
    assert world.blocks_poisoned >= len(PATHS)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_forging_many_symbols_only_slows_the_cast(share: float) -> None:
    _assert_complete(World(_scenario(3, forged_share=share)).run())


@pytest.mark.parametrize("seed", range(40))
def test_forgeries_in_a_terrible_network(seed: int) -> None:
    scenario = Scenario.draw(seed)
    scenario.forged_share = 0.02
    scenario.encrypted = seed % 2 == 0
    world = World(scenario).run()
    for receiver in world.receivers:
        if receiver.complete:
            assert receiver.holds_image(), f"seed {seed}"
        elif receiver.alive and receiver.session is not None:
            pytest.fail(f"seed {seed}: receiver {receiver.index} didn't complete, {world.describe()}")
