"""Two agents race for one target: neither reports an image that isn't there."""

from __future__ import annotations

from pathlib import Path

from tests.soak.two_agents import race

ROUNDS = 40


def test_two_agents_that_race_for_one_file_never_report_a_false_success(tmp_path: Path) -> None:
    found = race(tmp_path, ROUNDS)
    assert not found.wrong_rounds, found
    assert sum("complete" in results for results in found.outcomes.elements()) == ROUNDS, found
    assert any("TargetInUseError" in results for results in found.outcomes), "they never met"
