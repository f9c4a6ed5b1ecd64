"""The cast's rate: climbs while the group keeps up, falls when it doesn't, tells random loss from congestion.

Three signs of congestion: a receiver's socket or buffers dropped datagrams, its buffers are nearly full, or more is
lost on the way than its usual share. For the last, slowing down is an experiment: if the share that arrives grows as
a bottleneck would let it, the loss was congestion and the lower rate stays; if it doesn't, the loss is the path's own,
parity's business, and the rate comes back.
"""

from __future__ import annotations

import dataclasses
import math

from protocol.constants import (
    RATE_BYTES_PER_S_MAX,
    RATE_BYTES_PER_S_MIN,
    RATE_BYTES_PER_S_START,
    REPORT_INTERVAL_S,
)
from protocol.session_records import ReceiverId

_TICK_S = 0.02
_CLIMB_FAST = 1.25
"""Per tick until the first congestion: from 200 Mbit/s to 4 Gbit/s in 0.3 s, and at most threefold between two
reports."""
_CLIMB_SLOW = 1.015
"""Per tick after it: doubled in a second."""
_CLIMB_BOLDER = 1.03
_BOLDER_AFTER_S = 1.5
"""The limit may have moved when there was no congestion for this long."""
_RESUME = 0.85
"""After a cut the rate climbs fast again up to this share of what had arrived, and carefully from there on."""
_BACK_OFF = 0.7
_BACK_OFF_DROPS = 0.6
_BACK_OFF_FILL = 0.8
_LOCAL_SETTLE_S = 0.05
"""A receiver whose buffers fill reports at once, so that its next cut needn't wait for the periodic reports."""
_FILL_FALLING = 0.03
"""Buffers that have emptied by this much since the last report need no further cut: they only need time."""
_FILL_HOLD = 0.35
_FILL_HIGH = 0.7
_LOSS_MARGIN = 0.015
_SAMPLE_DATAGRAMS_MIN = 50
_USUAL_LOSS_SMOOTHING = 0.1
_ACHIEVED_HEADROOM = 2.0
"""The rate stays within this factor of what is really sent: a sender that is limited by its own processor or source
doesn't earn the right to a burst."""


@dataclasses.dataclass(frozen=True, slots=True)
class RateSample:
    """What one receiver saw between two of its reports."""

    expected_count: int
    received_count: int
    local_drop_count: int
    """Dropped at its socket or for want of a buffer."""
    fill: float

    @property
    def loss(self) -> float:
        """Share of the datagrams that didn't arrive, 0..1."""
        if self.expected_count <= 0:
            return 0.0
        return min(1.0, max(0.0, 1.0 - self.received_count / self.expected_count))


@dataclasses.dataclass(slots=True)
class _Experiment:
    receiver_id: ReceiverId
    rate_before: float
    arrived_before: float
    measure_from: float


class RateController:
    """Automatic rate within ``[minimum, maximum]``, or a fixed one."""

    def __init__(
        self, *, fixed_bytes_per_s: float | None, maximum_bytes_per_s: float | None, now: float
    ) -> None:
        self.fixed = fixed_bytes_per_s is not None
        self._maximum = min(maximum_bytes_per_s or RATE_BYTES_PER_S_MAX, RATE_BYTES_PER_S_MAX)
        self.rate_bytes_per_s = fixed_bytes_per_s or min(RATE_BYTES_PER_S_START, self._maximum)
        self._tick_at = now
        self._cut_at = -math.inf
        self._hold_until = -math.inf
        self._resume_at_bytes_per_s = math.inf
        self._usual_loss: dict[ReceiverId, float] = {}
        self._fill: dict[ReceiverId, float] = {}
        self._experiment: _Experiment | None = None

    def usual_loss(self, receiver_id: ReceiverId) -> float:
        """The share that this receiver loses whatever the rate."""
        return self._usual_loss.get(receiver_id, 0.0)

    def forget(self, receiver_id: ReceiverId) -> None:
        """A receiver left the group."""
        self._usual_loss.pop(receiver_id, None)
        self._fill.pop(receiver_id, None)
        if self._experiment is not None and self._experiment.receiver_id == receiver_id:
            self._experiment = None

    def tick(self, achieved_bytes_per_s: float, now: float) -> None:
        """Climb if nothing speaks against it; call it at any time, it keeps its own pace.

        Args:
            achieved_bytes_per_s: what was really sent lately.
            now: monotonic seconds.
        """
        if self.fixed or now - self._tick_at < _TICK_S:
            return
        self._tick_at = now
        if now < self._hold_until or self._experiment is not None:
            return
        careful = _CLIMB_SLOW if now - self._cut_at < _BOLDER_AFTER_S else _CLIMB_BOLDER
        climbed = max(
            self.rate_bytes_per_s * careful,
            min(self.rate_bytes_per_s * _CLIMB_FAST, self._resume_at_bytes_per_s),
        )
        limit = min(self._maximum, max(RATE_BYTES_PER_S_START, achieved_bytes_per_s * _ACHIEVED_HEADROOM))
        self.rate_bytes_per_s = max(self.rate_bytes_per_s, min(climbed, limit))

    def add_sample(self, receiver_id: ReceiverId, sample: RateSample, grtt_s: float, now: float) -> None:
        """Take what one receiver reports."""
        if self.fixed:
            if not sample.local_drop_count and sample.expected_count >= _SAMPLE_DATAGRAMS_MIN:
                self._learn_usual_loss(receiver_id, sample)
            return
        settle_s = grtt_s + 2 * REPORT_INTERVAL_S
        emptying = sample.fill < self._fill.get(receiver_id, 0.0) - _FILL_FALLING
        self._fill[receiver_id] = sample.fill
        if sample.local_drop_count or (sample.fill > _FILL_HIGH and not emptying):
            factor = _BACK_OFF_DROPS if sample.local_drop_count else _BACK_OFF_FILL
            self._cut(factor, 1.0 - sample.loss, grtt_s + _LOCAL_SETTLE_S, now)
            return
        if sample.fill > _FILL_HOLD:
            self._hold_until = max(self._hold_until, now + REPORT_INTERVAL_S)
        if sample.expected_count < _SAMPLE_DATAGRAMS_MIN:
            return
        experiment = self._experiment
        if experiment is not None:
            if experiment.receiver_id == receiver_id and now >= experiment.measure_from:
                self._judge(experiment, sample, now)
            return
        usual = self._usual_loss.get(receiver_id, 0.0)
        deviation = math.sqrt(max(usual, 0.01) / sample.expected_count)
        if sample.loss > usual + _LOSS_MARGIN + 3 * deviation:
            if now - self._cut_at > settle_s:
                self._experiment = _Experiment(
                    receiver_id, self.rate_bytes_per_s, 1.0 - sample.loss, now + settle_s
                )
                self._cut(_BACK_OFF, 1.0 - sample.loss, settle_s, now)
        else:
            self._learn_usual_loss(receiver_id, sample)

    def _learn_usual_loss(self, receiver_id: ReceiverId, sample: RateSample) -> None:
        usual = self._usual_loss.get(receiver_id, 0.0)
        self._usual_loss[receiver_id] = usual + _USUAL_LOSS_SMOOTHING * (sample.loss - usual)

    def _judge(self, experiment: _Experiment, sample: RateSample, now: float) -> None:
        """A bottleneck lets a larger share through at a lower rate; a lossy path doesn't."""
        self._experiment = None
        arrived = 1.0 - sample.loss
        slowed = self.rate_bytes_per_s / experiment.rate_before
        if_congested = min(1.0, experiment.arrived_before / slowed)
        if arrived < (experiment.arrived_before + if_congested) / 2:
            self._usual_loss[experiment.receiver_id] = sample.loss
            self.rate_bytes_per_s = max(self.rate_bytes_per_s, experiment.rate_before)
            self._resume_at_bytes_per_s = math.inf
            self._cut_at = -math.inf
            self._hold_until = now

    def _cut(self, factor: float, arrived: float, settle_s: float, now: float) -> None:
        self._hold_until = now + settle_s
        if now - self._cut_at < settle_s:
            return  # one cut a round trip: the reports still describe the rate before it
        self._cut_at = now
        self._resume_at_bytes_per_s = _RESUME * arrived * self.rate_bytes_per_s
        self.rate_bytes_per_s = max(RATE_BYTES_PER_S_MIN, self.rate_bytes_per_s * factor)
