"""The group's round-trip time: one false report changes nothing, and honest far receivers count."""

from __future__ import annotations

import pytest

from protocol.constants import ECHOES_MAX, GRTT_MAX_S
from protocol.model.session_records import ReceiverId
from protocol.sending.feedback.grtt import Echoes, GrttEstimator


def settle(rtts_s: dict[int, list[float]], rounds: int = 60) -> float:
    """Return the GRTT after ``rounds`` of reports; each receiver repeats its round-trip times."""
    grtt = GrttEstimator()
    for round_number in range(rounds):
        now = 100.0 + 0.1 * round_number
        for receiver, values in rtts_s.items():
            grtt.add(ReceiverId(receiver), values[round_number % len(values)], now, 0.1)
    return grtt.grtt_s


NEAR = {index: [0.002] for index in range(30)}


def test_one_lying_receiver_changes_nothing() -> None:
    assert settle(NEAR | {99: [GRTT_MAX_S]}) == settle(NEAR) == pytest.approx(0.002)


def test_one_late_report_changes_nothing() -> None:
    """A machine whose scheduler pauses answers late, now and then."""
    assert settle({index: [0.002, 0.002, 0.002, 0.5] for index in range(30)}) == pytest.approx(0.002)


def test_a_few_far_receivers_count() -> None:
    assert settle(NEAR | {97: [0.2], 98: [0.18], 99: [0.19]}) == pytest.approx(0.19)


def test_a_receiver_alone_counts() -> None:
    assert settle({1: [0.2]}) == pytest.approx(0.2)


def test_receivers_that_have_left_do_not_count() -> None:
    grtt = GrttEstimator()
    for receiver in (1, 2, 3):
        grtt.add(ReceiverId(receiver), 0.2, 100.0, 0.1)
    for receiver in (1, 2):
        grtt.forget(ReceiverId(receiver))
    for round_number in range(100):
        grtt.add(ReceiverId(4), 0.001, 101.0 + round_number, 0.1)
        grtt.add(ReceiverId(3), 0.001, 101.0 + round_number, 0.1)
    assert grtt.grtt_s == pytest.approx(0.001)


def test_only_recent_time_stamps_of_the_sender_measure() -> None:
    echoes = Echoes()
    for number in range(ECHOES_MAX + 1):
        echoes.add(100_000_000 + number)
    assert echoes.rtt_s(100_000_000, 0, 100.1) is None, "forgotten"
    assert echoes.rtt_s(100_000_001, 20_000, 100.1) == pytest.approx(0.079999)
    assert echoes.rtt_s(100_000_001, 200_000, 100.1) is None, "before it was sent"
    assert echoes.rtt_s(99_000_000, 0, 100.1) is None, "never sent"
    assert echoes.rtt_s(0, 0, 100.1) is None
