"""Feedback that a network reorders is taken, feedback that somebody plays again isn't."""

from __future__ import annotations

import random

import pytest

from protocol.sending.replay_window import ReplayWindow


def test_whatever_the_order_each_counts_once() -> None:
    """Otherwise a NACK that a REPORT has overtaken is lost, and the block comes a round trip later."""
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
def test_what_is_older_than_the_window_is_never_taken(jump: int) -> None:
    window = ReplayWindow()
    assert window.accept(100)
    assert window.accept(100 + jump)
    assert not window.accept(100)
    assert not window.accept(100 + jump)
    assert window.accept(99) == (jump < 63)
    assert not window.accept(0), "counters begin at 1"
