"""Experiments that distinguish congestion from random loss by two samples at different rates.

Loss without a queue has two possible causes: a bottleneck with hardly a buffer, or a lossy path. No single sample can
separate them, but two can: a bottleneck lets a smaller share through at a higher rate, a lossy path the same share.
Slow start makes both samples. At a steady rate the loss of the first receiver counts as congestion, and its cut makes
the second sample of the others. Its own loss is random if it stays below the knee, where a link drops nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from protocol.model.session_records import ReceiverId
from protocol.sending.rate.rate_sample import RateSample

_TIMEOUT_S: Final = 1.0
"""The network may have changed since an older first sample."""
_RATIO_MIN: Final = 1.03
"""Rates that differ by less are the same: half of a cut, and more than a delivery rate's error."""
BETA: Final = 0.7
"""Multiplicative decrease of CUBIC (RFC 9438 section 4.6). A larger loss counts as congestion and pauses slow start."""


@dataclasses.dataclass(frozen=True, slots=True)
class _First:
    sample: RateSample
    taken_at: float


class LossExperiment:
    """First samples of receivers with an unusual loss during slow start."""

    def __init__(self) -> None:
        self._first: dict[ReceiverId, _First] = {}

    @property
    def overload(self) -> bool:
        """Return whether slow start has to pause: some receiver loses more than a cut would prevent."""
        return any(first.sample.loss > 1.0 - BETA for first in self._first.values())

    def add_loss(self, receiver_id: ReceiverId, sample: RateSample, now: float) -> None:
        """Take an unusual loss as a receiver's first sample."""
        if sample.arriving_bytes_per_s:
            self._first.setdefault(receiver_id, _First(sample, now))

    def forget(self, receiver_id: ReceiverId) -> None:
        """Drop a receiver's first sample."""
        self._first.pop(receiver_id, None)

    def expire(self, now: float) -> None:
        """Drop old samples."""
        self._first = {key: first for key, first in self._first.items() if now <= first.taken_at + _TIMEOUT_S}

    def result(
        self, receiver_id: ReceiverId, sample: RateSample, round_s: float, now: float
    ) -> tuple[bool, float] | None:
        """Compare a receiver's samples; None while there is no second one.

        Args:
            receiver_id: the receiver.
            sample: its latest one.
            round_s: time for which reports may still describe the time of the first one.
            now: monotonic seconds.

        Returns:
            Whether the loss is congestion, and the receiver's highest delivery rate.
        """
        first = self._first.get(receiver_id)
        if first is None or now < first.taken_at + round_s:
            return None
        del self._first[receiver_id]
        before = first.sample
        # The rates that the two samples describe, not the rates at the times of the reports.
        ratio = before.offered_bytes_per_s / max(sample.offered_bytes_per_s, 1.0)
        arrived, arrived_before = 1.0 - sample.loss, 1.0 - before.loss
        at_bottleneck = min(1.0, arrived_before * min(max(ratio, BETA), 1.0 / BETA))
        halfway = (arrived_before + at_bottleneck) / 2
        congestion = arrived >= halfway if ratio > 1.0 else arrived <= halfway
        steady = 1.0 / _RATIO_MIN < ratio < _RATIO_MIN
        overload = min(arrived, arrived_before) < BETA
        return congestion or steady or overload, max(before.arriving_bytes_per_s, sample.arriving_bytes_per_s)
