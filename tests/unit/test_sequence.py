"""Loss by sequence number: wrong arithmetic at the wrap would report a dead network after 6 TB."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.sequence import LossCounter, sequence_difference


@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [(5, 3, 2), (3, 5, -2), (1, 2**32 - 1, 2), (2**32 - 1, 1, -2), (2**31, 0, -(2**31))],
)
def test_difference(a: int, b: int, difference: int) -> None:
    assert sequence_difference(a, b) == difference


def test_loss_across_the_wrap() -> None:
    counter = LossCounter()
    sent = [(2**32 - 10 + i) % 2**32 for i in range(20)]
    counter.add(np.array(sent[:5], np.uint32))
    counter.add(np.array(sent[8:14], np.uint32))
    counter.add(np.array([sent[6], sent[19]], np.uint32))
    assert counter.expected_count == 20
    assert counter.received_count == 13
    assert counter.next_sequence == 10


def test_flush_makes_a_lost_tail_count() -> None:
    counter = LossCounter()
    counter.add(np.array([7], np.uint32))
    counter.advance(10)
    counter.advance(9)
    assert (counter.expected_count, counter.received_count, counter.next_sequence) == (3, 1, 10)
