"""Experiments that distinguish congestion from random loss by two samples at different rates.

Loss without a queue has two possible causes: a bottleneck with hardly a buffer, or a lossy path. No single sample can
tell them apart, but two can: a bottleneck lets a larger share through at a lower rate, a lossy path the same share.
During slow start the second sample costs nothing. At a steady rate, the sender lowers it for a moment.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Final

from protocol.model.session_records import ReceiverId
from protocol.sending.rate.rate_sample import RateSample

_RATIO_MIN: Final = 1.15
"""Two rates that differ by less say nothing about the cause of a loss."""
_TIMEOUT_S: Final = 1.0
"""A receiver whose second sample takes longer has left, or the network has changed since the first."""
BETA: Final = 0.7
"""Multiplicative decrease of CUBIC (RFC 9438 section 4.6), also for experiments."""


class LossCause(enum.Enum):
    """Answer of an experiment for one receiver."""

    CONGESTION = enum.auto()
    RANDOM = enum.auto()
    UNKNOWN = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class _First:
    sample: RateSample
    taken_at: float


class LossExperiment:
    """First samples of receivers with an unusual loss, and the lower rate if there is one.

    Attributes:
        rate_before: rate to return to; None while the rate isn't lowered.
    """

    def __init__(self) -> None:
        self.rate_before: float | None = None
        self._first: dict[ReceiverId, _First] = {}
        self._measure_from = -math.inf

    @property
    def overload(self) -> bool:
        """A receiver loses more than a multiplicative decrease would prevent, so that slow start has to pause."""
        return any(first.sample.loss > 1.0 - BETA for first in self._first.values())

    def add_loss(self, receiver_id: ReceiverId, sample: RateSample, now: float) -> None:
        """Take an unusual loss as a receiver's first sample."""
        if self.rate_before is None and sample.arriving_bytes_per_s:
            self._first.setdefault(receiver_id, _First(sample, now))

    def result(
        self, receiver_id: ReceiverId, sample: RateSample, round_s: float, now: float
    ) -> tuple[LossCause, RateSample] | None:
        """Compare a receiver's samples.

        Args:
            receiver_id: the receiver.
            sample: its latest one.
            round_s: time for which reports may still describe an earlier rate.
            now: monotonic seconds.

        Returns:
            The cause and the first sample; None while there is no second one.
        """
        first = self._first.get(receiver_id)
        if first is None or now < max(first.taken_at + round_s, self._measure_from):
            return None
        before = first.sample
        # The rates that the two samples describe, not the rates at the times of the reports.
        ratio = before.offered_bytes_per_s / max(sample.offered_bytes_per_s, 1.0)
        if 1.0 / _RATIO_MIN < ratio < _RATIO_MIN:
            return LossCause.UNKNOWN, before
        ratio = min(max(ratio, BETA), 1.0 / BETA)
        arrived, arrived_before = 1.0 - sample.loss, 1.0 - before.loss
        halfway = (arrived_before + min(1.0, arrived_before * ratio)) / 2
        random = arrived > halfway if ratio < 1.0 else arrived < halfway
        return (LossCause.RANDOM if random else LossCause.CONGESTION), before

    def lower(self, rate_before: float, measure_from: float) -> None:
        """Start the second samples at a lower rate."""
        self.rate_before = rate_before
        self._measure_from = measure_from

    def forget(self, receiver_id: ReceiverId) -> None:
        """Drop a receiver's first sample."""
        self._first.pop(receiver_id, None)

    def finish(self, now: float) -> float | None:
        """Return the rate to return to, once, when no receiver is left in the experiment."""
        for receiver_id in [key for key, first in self._first.items() if now > first.taken_at + _TIMEOUT_S]:
            del self._first[receiver_id]
        if self._first:
            return None
        rate, self.rate_before = self.rate_before, None
        return rate
