"""Loss experiments where chance or silence would mislead them; whole paths are in ``test_rate_control.py``."""

from __future__ import annotations

from protocol.model.session_records import ReceiverId
from protocol.sending.rate.loss_experiment import LossExperiment
from protocol.sending.rate.rate_sample import RateSample
from tests.unit.protocol.sending.rate.rate_path import MBIT

RECEIVER = ReceiverId(0)
ROUND_S = 0.2


def sample(*, loss: float, arriving_mbit: float) -> RateSample:
    return RateSample(
        expected_count=1000,
        received_count=round(1000 * (1 - loss)),
        local_drop_count=0,
        fill=0.0,
        loss_burst=1.0,
        arriving_bytes_per_s=arriving_mbit * MBIT,
        queue_delay_s=0.0,
    )


def test_a_steady_rate_tells_nothing_so_its_loss_counts_as_congestion() -> None:
    """Chance alone makes the second sample better: taken for random, it would let a slower link overflow."""
    experiment = LossExperiment()
    experiment.add_loss(RECEIVER, sample(loss=0.10, arriving_mbit=90), now=0.0)
    result = experiment.result(RECEIVER, sample(loss=0.09, arriving_mbit=92), ROUND_S, now=0.3)
    assert result == (True, 92 * MBIT)


def test_a_receiver_that_falls_silent_pauses_slow_start_for_a_second() -> None:
    """It counts as lost only after many seconds, and the others would wait for it."""
    experiment = LossExperiment()
    experiment.add_loss(RECEIVER, sample(loss=0.5, arriving_mbit=50), now=0.0)
    experiment.expire(0.5)
    assert experiment.overload
    experiment.expire(1.5)
    assert not experiment.overload
