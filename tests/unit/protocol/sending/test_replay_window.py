"""Replay protection: reordered feedback is accepted, repeated feedback isn't."""

from __future__ import annotations

import random

import pytest

from protocol.sending.replay_window import ReplayWindow


def test_each_counts_once_in_any_order() -> None:
    """Otherwise a NACK behind a REPORT is lost, and the block arrives a round trip later."""
    rng = random.Random(1)
    window = ReplayWindow()
    coming = list(range(1, 2000))
    arriving = [
        counter for _, counter in sorted((counter + rng.uniform(0, 60), counter) for counter in coming)
    ]
    assert arriving != coming
    assert all(window.accept(counter) for counter in arriving)
    assert not any(window.accept(counter) for counter in arriving)


@pytest.mark.parametrize("jump", [1, 63, 64, 65, 2**31, 2**32 - 101])
def test_a_counter_below_the_window_is_refused(jump: int) -> None:
    window = ReplayWindow()
    assert window.accept(100)
    assert window.accept(100 + jump)
    assert not window.accept(100)
    assert not window.accept(100 + jump)
    assert window.accept(99) == (jump < 63)
    assert not window.accept(0), "counters begin at 1"
