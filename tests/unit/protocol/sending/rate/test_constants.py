"""Constants of rate control: one that nobody can explain or switch off is one too many."""

from __future__ import annotations

from docs import rate_plots
from tests.simulation.ablation import SWITCHES


def test_every_constant_has_a_reason() -> None:
    assert [name for _, name, _, reason in rate_plots.constants() if not reason] == []


def test_the_page_lists_the_constants_of_the_code() -> None:
    """Otherwise readers would tune what is no longer there."""
    assert rate_plots.constants_table() in rate_plots.PAGE.read_text()


def test_every_constant_can_be_ablated() -> None:
    """A constant without a switch stays forever, whether it is missed or not."""
    switched = {path.rpartition(".")[2] for switch in SWITCHES for path in switch.values}
    assert {name for _, name, _, _ in rate_plots.constants()} - switched == set()
