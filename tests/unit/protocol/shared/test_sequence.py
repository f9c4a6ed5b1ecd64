"""Loss by sequence number: wrong arithmetic at the wrap would report a dead network after 6 TB."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.shared.sequence import FollowedSequence, LossCounter, sequence_difference


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


def _events(*batches: list[int]) -> LossCounter:
    counter = LossCounter()
    for batch in batches:
        counter.add(np.array(batch, np.uint32))
    return counter


def test_runs_of_lost_numbers_are_counted_once_each() -> None:
    """The length of loss bursts decides whether blocks are interleaved."""
    assert _events([0, 1, 2, 3]).loss_event_count == 0
    assert _events([0, 1, 5, 6, 9]).loss_event_count == 2, "inside a batch"
    assert _events([0, 1], [5, 6], [7], [12]).loss_event_count == 2, "between batches"
    assert _events([2**32 - 2, 2**32 - 1, 3, 4]).loss_event_count == 1, "across the wrap"


def test_a_late_datagram_makes_no_second_loss_event() -> None:
    assert _events([0, 1, 4, 5], [2, 3]).loss_event_count == 1
    assert _events([0, 1, 2], [1, 2], [3]).loss_event_count == 0, "doubled"


def test_a_burst_that_flush_reveals_is_one_event() -> None:
    """The last super-datagram of a pass has no successor that would show the gap."""
    counter = _events([0, 1, 2])
    counter.advance(47)
    counter.advance(47)
    assert (counter.loss_event_count, counter.expected_count - counter.received_count) == (1, 44)


def test_a_receiver_that_hears_only_of_the_end_has_lost_nothing_yet() -> None:
    """Datagrams from before its first one aren't its loss."""
    counter = LossCounter()
    counter.advance(1000)
    counter.add(np.array([1000, 1001], np.uint32))
    assert (counter.expected_count, counter.received_count, counter.loss_event_count) == (2, 2, 0)


@pytest.mark.parametrize("start", [0, 2**32 - 500])
@pytest.mark.parametrize("batch", [1, 7, 64, 300])
def test_forged_numbers_do_not_move_the_position(start: int, batch: int) -> None:
    """Blocks on their way would look lost, and the sender would send them again for nothing."""
    rng = np.random.default_rng(1)
    followed = FollowedSequence(start)
    honest = start + np.arange(3000)
    numbers = honest.copy()
    forged = rng.random(numbers.size) < 0.05
    numbers[forged] += rng.integers(1, 1 << 22, int(forged.sum()))
    for at in range(0, numbers.size, batch):
        followed.add((numbers[at : at + batch] % 2**32).astype(np.uint32))
        newest = int(honest[min(at + batch, numbers.size) - 1]) + 1
        lag = sequence_difference(newest % 2**32, followed.next_sequence)
        if at > 200:
            assert 0 <= lag <= 32


def test_the_first_datagram_of_all_can_be_forged() -> None:
    followed = FollowedSequence(1000)
    followed.add(np.array([4_000_000], np.uint32))
    assert followed.next_sequence == 1000
    followed.add(np.arange(1000, 1100, dtype=np.uint32))
    assert followed.next_sequence == 1084


def test_forged_numbers_are_not_counted_as_losses() -> None:
    """They would look like bursts of losses, against which the sender adds parity."""
    counter, followed = LossCounter(), FollowedSequence(0)
    numbers = np.arange(3000, dtype=np.uint32)
    numbers[50::100] += 700
    for at in range(0, 3000, 60):
        followed.add(numbers[at : at + 60])
        counter.add(numbers[at : at + 60], followed.highest_plausible)
    assert counter.received_count == counter.expected_count == 3000


def test_the_position_follows_a_gap_and_the_senders_word() -> None:
    followed = FollowedSequence(0)
    followed.add(np.arange(100, dtype=np.uint32))
    followed.add(np.arange(90_000, 90_100, dtype=np.uint32))
    assert followed.next_sequence == 90_084
    followed.advance(100_000)
    followed.advance(50)
    assert followed.next_sequence == 100_000
