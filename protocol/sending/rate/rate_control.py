"""The cast's rate: climbs while the group keeps up, finds the knee of whoever limits it, and stays there.

Each receiver has a :class:`~protocol.sending.rate.capacity.Capacity`; the group's rate is the least that they allow.
Three kinds of trouble lower one:

* its own: buffers that fill, datagrams dropped at its socket; it says itself whether disk, decoding or socket;
* a full link: a queue on the way that is never empty (time stamps in the data), long before anything is lost. What
  arrives meanwhile *is* the link's rate (as in BBR), so that one report is enough to find the knee;
* loss without a queue: either the path's own, parity's business, or a link with hardly a buffer. Another rate tells: if
  a larger share arrives at a lower one it was congestion. While the rate climbs that costs nothing, later it is an
  experiment for which the rate is lowered for a moment.

A queue that stays although the cast has slowed down below its own knee is somebody else's traffic: then delay says
nothing, and loss decides as it does for TCP.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from protocol.constants import (
    QUEUE_DELAY_HIGH_S,
    RATE_BYTES_PER_S_MAX,
    RATE_BYTES_PER_S_MIN,
    RATE_BYTES_PER_S_START,
    REPAIR_LATENCY_S,
)
from protocol.model.bottleneck import NO_BOTTLENECK, Bottleneck, Cause
from protocol.model.session_records import ReceiverId
from protocol.sending.rate.capacity import Capacity, FirstLoss
from protocol.shared.feedback_timing import ARRIVAL_WINDOW_S

_TICK_S: Final = 0.02
_RATES_KEPT: Final = 10
"""Ticks: a report describes a rate of this long ago at most."""
_CLIMB_DOUBLING_S: Final = 0.06
"""From 200 Mbit/s to 4 Gbit/s in a quarter of a second; a queue is reported within two polls of a receiver."""

_DRAIN_S: Final = 0.3
"""A standing queue is drained in about this time, by going below the knee."""
_DEPTH_MIN: Final = 0.012
_DEPTH_LOSS: Final = 0.03
_DEPTH_MAX: Final = 0.15
_DEPTH_CROWDED: Final = 0.15
_DEPTH_SHARED: Final = 0.3
"""CUBIC's (RFC 9438 section 4.6)."""
_DEPTH_DROPS: Final = 0.25
_DEPTH_FILL: Final = 0.1
_KNEE_SHARE_MIN: Final = 0.05
"""One report lowers the rate at most to this share: it may have been written in a bad moment."""
_OWN_KNEE_SHARE_MIN: Final = 0.5
_OWN_KNEE_SHARE_MAX: Final = 0.95
_STEP_DOWN: Final = 0.7
"""What arrives falls below this share of what is allowed: the link has become slower once more."""

_FILL_HOLD: Final = 0.35
_FILL_HIGH: Final = 0.7
_EMPTYING_SHARE: Final = 0.97
_FILL_FALLING: Final = 0.03
"""Buffers that have emptied by this much since the last report only need time."""
_LOCAL_SETTLE_S: Final = 0.05

_LOSS_MARGIN: Final = 0.015
_LOSS_MARGIN_CROWDED: Final = 0.002
"""Beside other traffic loss is the only sign there is."""
_QUEUE_DELAY_SOME_S: Final = 0.0015
_SAMPLE_DATAGRAMS_MIN: Final = 50
_DATAGRAMS_PER_HIGH_DELAY: Final = 6
"""On slow links the time of a few datagrams is no queue."""
_SURPRISE_WEIGHT: Final = 0.5
_EXPERIMENT_DATAGRAMS_MIN: Final = 300
"""Of fewer, chance alone makes a loss of 5 % look like one of 10 %."""
_CLIMB_EXPERIMENT_S: Final = 0.4
_TWO_WINDOWS_S: Final = 1.5 * ARRIVAL_WINDOW_S
_CLIMBED: Final = 1.25
_RANDOM_LOSS_MAX: Final = 0.25
"""More than this is congestion until the contrary is proved: at ten times a link's rate nine of ten are lost, and seven
tenths of that would tell nothing."""
_EXPERIMENT_SHARE: Final = 0.7
_LOWERED: Final = 1.15
_BELIEVE_S: Final = 5.0
"""What one experiment showed holds for the others' loss, at the same rate, for this long."""
_STUBBORN_MAX: Final = 3
_ALL_OF_OURS: Final = 0.9
_DRAINED_MIN_S: Final = 0.002
_DRAINED_SHARE: Final = 0.3
"""A queue of ours has fallen by at least this share of what the cut should have drained."""
_CROWDED_S: Final = 10.0
_ACHIEVED_HEADROOM: Final = 2.0
"""The rate stays within this factor of what is really sent: a sender that is limited by its own processor or source
doesn't earn the right to a burst."""


@dataclasses.dataclass(frozen=True, slots=True)
class RateSample:
    """What one receiver saw lately.

    Attributes:
        expected_count: datagrams sent in the last 100 ms.
        received_count: those of them that arrived.
        local_drop_count: dropped at its socket or for want of a buffer since its last report.
        fill: of its buffers, 0..1.
        loss_burst: datagrams lost in a row, on average; 0 if that can't be told.
        arriving_bytes_per_s: rate at which frames arrived; 0 unknown.
        queue_delay_s: least time that they spent in queues.
        written_bytes_per_s: rate at which it writes, as bytes of frames; 0 unknown.
        cause: what it says limits it.
    """

    expected_count: int
    received_count: int
    local_drop_count: int = 0
    fill: float = 0.0
    loss_burst: float = 0.0
    arriving_bytes_per_s: float = 0.0
    queue_delay_s: float = 0.0
    written_bytes_per_s: float = 0.0
    cause: Cause = Cause.NETWORK

    @property
    def loss(self) -> float:
        """Share of the datagrams that didn't arrive, 0..1."""
        if self.expected_count <= 0:
            return 0.0
        return min(1.0, max(0.0, 1.0 - self.received_count / self.expected_count))

    @property
    def offered_bytes_per_s(self) -> float:
        """The rate at which the sender sent what this describes."""
        return self.arriving_bytes_per_s / max(1.0 - self.loss, 1e-3)


@dataclasses.dataclass(slots=True)
class _Experiment:
    rate_before: float
    before: dict[ReceiverId, FirstLoss]
    measure_from: float


class RateController:
    """Automatic rate up to a ceiling, or a fixed one.

    Attributes:
        rate_bytes_per_s: the rate now, in bytes of frames.
        fixed: whether it is the operator's and follows nobody.
        capacities: by receiver; who is exempt there doesn't count.
    """

    def __init__(
        self,
        *,
        fixed_bytes_per_s: float | None,
        maximum_bytes_per_s: float | None,
        frame_bytes: int,
        now: float,
        share: bool = False,
    ) -> None:
        self.fixed = fixed_bytes_per_s is not None
        self._wished_bytes_per_s = fixed_bytes_per_s or math.inf
        self.maximum_bytes_per_s = min(maximum_bytes_per_s or RATE_BYTES_PER_S_MAX, RATE_BYTES_PER_S_MAX)
        self.rate_bytes_per_s = fixed_bytes_per_s or min(RATE_BYTES_PER_S_START, self.maximum_bytes_per_s)
        self.capacities: dict[ReceiverId, Capacity] = {}
        self._share = share
        self._frame_bytes = frame_bytes
        self._tick_at = now
        self._rates: deque[float] = deque([self.rate_bytes_per_s], _RATES_KEPT)
        self._hold_until = -math.inf
        self._cut_at = -math.inf
        self._experiment: _Experiment | None = None
        self._believed_until = -math.inf
        self._believed_rate = 0.0

    # -- what others read -------------------------------------------------------------------------------------

    def usual_loss(self, receiver_id: ReceiverId) -> float:
        """The share that this receiver loses whatever the rate."""
        capacity = self.capacities.get(receiver_id)
        return capacity.usual_loss if capacity else 0.0

    @property
    def bottleneck(self) -> Bottleneck:
        """What holds the rate down."""
        if self.fixed or self.rate_bytes_per_s >= 0.98 * self.maximum_bytes_per_s:
            return Bottleneck(Cause.CEILING)
        counted = [(item.allowed_bytes_per_s(), key) for key, item in self._counted()]
        least, receiver_id = min(counted, default=(math.inf, ReceiverId(0)))
        if self.rate_bytes_per_s < 0.9 * least:
            return NO_BOTTLENECK
        cause = self.capacities[receiver_id].cause
        if cause is Cause.NETWORK and len(counted) > 1:
            alike = sum(allowed < 1.15 * least for allowed, _ in counted)
            if 2 * alike > len(counted):
                return Bottleneck(Cause.NETWORK)  # everybody's
        return Bottleneck(cause, receiver_id)

    def forget(self, receiver_id: ReceiverId) -> None:
        """A receiver left the group."""
        self.capacities.pop(receiver_id, None)
        if self._experiment is not None:
            self._experiment.before.pop(receiver_id, None)

    # -- climbing ---------------------------------------------------------------------------------------------

    def tick(self, achieved_bytes_per_s: float, now: float) -> None:
        """Climb if nothing speaks against it; call it at any time, it keeps its own pace.

        Args:
            achieved_bytes_per_s: what was really sent lately.
            now: monotonic seconds.
        """
        elapsed_s = now - self._tick_at
        if self.fixed or elapsed_s < _TICK_S:
            return
        self._tick_at = now
        self._rates.append(self.rate_bytes_per_s)
        if self._experiment is not None:
            if now > self._experiment.measure_from + 1.0:
                self._experiment = None  # those that it was about are gone
            return
        held = now < self._hold_until
        step_s = min(elapsed_s, 2 * _TICK_S)
        target = self.maximum_bytes_per_s
        for _, capacity in self._counted():
            if not capacity.limited:
                continue
            below_share = max(0.0, 1.0 - self.rate_bytes_per_s / capacity.knee_bytes_per_s)
            capacity.drained_s += below_share * step_s
            if not held and capacity.fill < _FILL_HOLD:
                allowed = capacity.allowed_bytes_per_s()
                if self.rate_bytes_per_s >= 0.9 * allowed and achieved_bytes_per_s >= 0.5 * allowed:
                    capacity.probe(step_s)
            target = min(target, capacity.allowed_bytes_per_s())
        if not held:
            headroom = max(RATE_BYTES_PER_S_START, achieved_bytes_per_s * _ACHIEVED_HEADROOM)
            climbed = self.rate_bytes_per_s * 2.0 ** (step_s / _CLIMB_DOUBLING_S)
            self.rate_bytes_per_s = max(self.rate_bytes_per_s, min(climbed, headroom))
        self._fall_to(target)

    def set_maximum(self, maximum_bytes_per_s: float) -> None:
        """Change the ceiling, also that of a fixed rate, at once."""
        self.maximum_bytes_per_s = max(RATE_BYTES_PER_S_MIN, min(maximum_bytes_per_s, RATE_BYTES_PER_S_MAX))
        if self.fixed:
            self.rate_bytes_per_s = min(self._wished_bytes_per_s, self.maximum_bytes_per_s)
        else:
            self._fall_to(self.maximum_bytes_per_s)

    def follow_group(self) -> None:
        """Who counts has changed: never stay above what the others allow."""
        if not self.fixed and self._experiment is None:
            self._fall_to(min((item.allowed_bytes_per_s() for _, item in self._counted()), default=math.inf))

    def _fall_to(self, target: float) -> None:
        self.rate_bytes_per_s = max(RATE_BYTES_PER_S_MIN, min(self.rate_bytes_per_s, target))

    def _counted(self) -> Iterable[tuple[ReceiverId, Capacity]]:
        return ((key, item) for key, item in self.capacities.items() if not item.exempt)

    # -- reports ----------------------------------------------------------------------------------------------

    def add_sample(self, receiver_id: ReceiverId, sample: RateSample, grtt_s: float, now: float) -> None:
        """Take what one receiver reports."""
        capacity = self.capacities.setdefault(receiver_id, Capacity())
        emptying = sample.fill < capacity.fill - _FILL_FALLING or (
            self.rate_bytes_per_s < _EMPTYING_SHARE * sample.written_bytes_per_s
        )
        capacity.fill = sample.fill
        if sample.fill > _FILL_HOLD and not capacity.exempt:
            self._hold_until = max(self._hold_until, now + ARRIVAL_WINDOW_S)
        if sample.queue_delay_s < _QUEUE_DELAY_SOME_S and sample.expected_count >= _SAMPLE_DATAGRAMS_MIN:
            capacity.crowded_until = -math.inf  # nobody else keeps it full
        settled = capacity.exempt or now > capacity.cut_at + self._settle_s(grtt_s)
        if sample.local_drop_count or (sample.fill > _FILL_HIGH and not emptying):
            capacity.troubled_at = now
            if capacity.exempt or now > capacity.cut_at + grtt_s + _LOCAL_SETTLE_S:
                self._meet_own_limit(capacity, sample, now)
        elif sample.queue_delay_s > self._delay_high_s and not self._goes_by_loss(capacity, now):
            capacity.troubled_at = now
            arriving = sample.arriving_bytes_per_s
            if settled or arriving < _STEP_DOWN * capacity.allowed_bytes_per_s():
                self._meet_queue(capacity, sample, grtt_s, now)
            elif sample.queue_delay_s > capacity.cut_delay_s:
                capacity.cut_delay_s = sample.queue_delay_s  # it still grew while the cut was on its way
                capacity.drained_s = 0.0
        elif sample.expected_count < _SAMPLE_DATAGRAMS_MIN:
            return
        elif self._experiment is not None:
            self._watch_experiment(self._experiment, receiver_id, capacity, sample, now)
        elif self._is_unusual(capacity, sample, now):
            self._meet_loss(receiver_id, capacity, sample, grtt_s, settled, now)
        else:
            self._learn_quiet(capacity, sample, settled)

    @staticmethod
    def _settle_s(grtt_s: float) -> float:
        """How long reports may still describe what was before a cut."""
        return grtt_s + ARRIVAL_WINDOW_S + REPAIR_LATENCY_S

    @property
    def _rate_then(self) -> float:
        """The rate that reports of now describe: what others' reports have made of it meanwhile isn't their doing."""
        return max(self._rates)

    @property
    def _delay_high_s(self) -> float:
        return max(QUEUE_DELAY_HIGH_S, _DATAGRAMS_PER_HIGH_DELAY * self._frame_bytes / self.rate_bytes_per_s)

    def _goes_by_loss(self, capacity: Capacity, now: float) -> bool:
        """Whether a full queue says nothing: it is others' as well, which only loss can slow down."""
        return now < capacity.crowded_until or (self._share and not capacity.exempt)

    def _is_unusual(self, capacity: Capacity, sample: RateSample, now: float) -> bool:
        deviation = math.sqrt(
            max(capacity.usual_loss, 0.01) * max(1.0, capacity.loss_burst) / sample.expected_count
        )
        margin = _LOSS_MARGIN_CROWDED if self._goes_by_loss(capacity, now) else _LOSS_MARGIN
        return sample.loss > capacity.usual_loss + margin + 3 * deviation

    @staticmethod
    def _learn_quiet(capacity: Capacity, sample: RateSample, settled: bool) -> None:
        capacity.proven_bytes_per_s = max(capacity.proven_bytes_per_s, sample.arriving_bytes_per_s)
        capacity.stubborn_count = 0
        # What a full queue dropped isn't the path's own.
        if settled and sample.queue_delay_s < _QUEUE_DELAY_SOME_S:
            capacity.learn_loss(sample.loss, sample.loss_burst)

    def _meet(self, capacity: Capacity, knee: float, depth: float, cause: Cause, now: float) -> None:
        capacity.meet_knee(max(knee, RATE_BYTES_PER_S_MIN), depth, cause, now)
        if not capacity.exempt:
            self._experiment = None  # it asked a question that this has answered
            self.follow_group()

    def _meet_own_limit(self, capacity: Capacity, sample: RateSample, now: float) -> None:
        """Its buffers fill or overflow: it can take what it works off."""
        cause = Cause.SOCKET if sample.cause is Cause.NETWORK else sample.cause
        worked_off = sample.arriving_bytes_per_s if cause is Cause.SOCKET else sample.written_bytes_per_s
        rate = self._rate_then
        knee = worked_off or _OWN_KNEE_SHARE_MIN * rate
        if not capacity.exempt:
            knee = min(max(knee, _OWN_KNEE_SHARE_MIN * rate), _OWN_KNEE_SHARE_MAX * rate)
        depth = _DEPTH_DROPS if sample.local_drop_count else _DEPTH_FILL
        self._meet(capacity, knee, depth, cause, now)

    def _meet_queue(self, capacity: Capacity, sample: RateSample, grtt_s: float, now: float) -> None:
        """The queue before it never empties: what arrives is all that its link carries."""
        rate = self._rate_then
        arriving = sample.arriving_bytes_per_s or _STEP_DOWN * rate
        arriving /= 1.0 - capacity.usual_loss
        if not capacity.exempt:
            if arriving > _ALL_OF_OURS * self.rate_bytes_per_s and self._is_stubborn(capacity, sample):
                capacity.crowded_until = now + _CROWDED_S
                capacity.stubborn_count = 0
                return
            arriving = max(arriving, _KNEE_SHARE_MIN * rate)
        capacity.cut_delay_s = sample.queue_delay_s
        depth = min(max(sample.queue_delay_s / _DRAIN_S, _DEPTH_MIN), _DEPTH_MAX)
        self._meet_network(capacity, arriving, depth, sample, grtt_s, now)

    def _meet_network(
        self,
        capacity: Capacity,
        knee: float,
        depth: float,
        sample: RateSample,
        grtt_s: float,
        now: float,
    ) -> None:
        """Its link is full; a link that shall be shared is left and taken as a TCP would.

        What others have just reported of the same queue has lowered the rate already: once is enough.
        """
        if now < self._cut_at + self._settle_s(grtt_s):
            depth = min(depth, max(0.0, 1.0 - self.rate_bytes_per_s / knee))
        elif not capacity.exempt:
            self._cut_at = now
        if self._share and not capacity.exempt:
            rtt_s = grtt_s + sample.queue_delay_s
            capacity.meet_shared_knee(knee, _DEPTH_SHARED, knee / self._frame_bytes, rtt_s, now)
            self._experiment = None
            self.follow_group()
        else:
            self._meet(capacity, knee, depth, Cause.NETWORK, now)
            capacity.escapes &= now >= capacity.crowded_until

    @staticmethod
    def _is_stubborn(capacity: Capacity, sample: RateSample) -> bool:
        """All of ours arrives, less than the link carries, and still the queue doesn't fall: it is somebody else's."""
        if not capacity.limited or capacity.drained_s < _DRAINED_MIN_S:
            return False
        should_fall_s = min(capacity.drained_s, capacity.cut_delay_s)
        if sample.queue_delay_s < capacity.cut_delay_s - _DRAINED_SHARE * should_fall_s:
            capacity.stubborn_count = 0
        else:
            capacity.stubborn_count += 1
        return capacity.stubborn_count >= _STUBBORN_MAX

    def _meet_loss(
        self,
        receiver_id: ReceiverId,
        capacity: Capacity,
        sample: RateSample,
        grtt_s: float,
        settled: bool,
        now: float,
    ) -> None:
        """More is lost than usual."""
        rate = self.rate_bytes_per_s
        crowded = now < capacity.crowded_until
        queued = sample.queue_delay_s > _QUEUE_DELAY_SOME_S
        below_knee = capacity.limited and rate < capacity.knee_bytes_per_s and not queued
        believed = now < self._believed_until and rate <= 1.1 * self._believed_rate and not queued
        if self.fixed or ((believed or (below_knee and settled)) and not crowded and not capacity.exempt):
            # Where the link isn't full nothing is lost for want of room.
            capacity.usual_loss += _SURPRISE_WEIGHT * (sample.loss - capacity.usual_loss)
            capacity.learn_loss(sample.loss, sample.loss_burst)
        elif crowded or capacity.limited or capacity.exempt or queued:
            if not settled:
                return
            capacity.troubled_at = now
            arriving = sample.arriving_bytes_per_s or (1.0 - sample.loss) * rate
            knee = arriving / (1.0 - capacity.usual_loss)
            if not capacity.exempt:
                knee = max(knee, _KNEE_SHARE_MIN * self._rate_then)
            depth = _DEPTH_CROWDED if crowded else _DEPTH_LOSS
            self._meet_network(capacity, knee, depth, sample, grtt_s, now)
        elif sample.expected_count >= _EXPERIMENT_DATAGRAMS_MIN and self._climb_tells(capacity, sample, now):
            measure_from = now + grtt_s + ARRIVAL_WINDOW_S + 2 * REPAIR_LATENCY_S
            first = FirstLoss(sample.offered_bytes_per_s, 1.0 - sample.loss, now)
            self._experiment = _Experiment(rate, {receiver_id: first}, measure_from)
            self.rate_bytes_per_s = max(RATE_BYTES_PER_S_MIN, _EXPERIMENT_SHARE * rate)

    def _climb_tells(self, capacity: Capacity, sample: RateSample, now: float) -> bool:
        """While the rate climbs anyway, two samples are an experiment for nothing; True if it takes a real one."""
        arrived, offered = 1.0 - sample.loss, sample.offered_bytes_per_s
        first = capacity.first_loss
        too_much = sample.loss > _RANDOM_LOSS_MAX
        if first is None or now - first.taken_at > _CLIMB_EXPERIMENT_S:
            capacity.first_loss = FirstLoss(offered, arrived, now)
            if too_much:  # go no further until a window shows what arrives
                self._hold_until = max(self._hold_until, now + _TWO_WINDOWS_S)
            return first is not None
        if now - first.taken_at < _TWO_WINDOWS_S:
            return False  # both would describe the same moment
        if too_much:
            # If it is the path's own after all, that shows below this knee.
            capacity.first_loss = None
            capacity.troubled_at = now
            self._meet(capacity, sample.arriving_bytes_per_s, _DEPTH_LOSS, Cause.NETWORK, now)
            return False
        if offered > _CLIMBED * first.offered_bytes_per_s:
            capacity.first_loss = None
            if arrived > _expected_in_between(first.arrived, first.offered_bytes_per_s / offered):
                self._believe_loss(capacity, sample)
            else:
                capacity.troubled_at = now
                self._meet(capacity, sample.arriving_bytes_per_s, _DEPTH_LOSS, Cause.NETWORK, now)
        return False

    @staticmethod
    def _believe_loss(capacity: Capacity, sample: RateSample) -> None:
        """It loses that much whatever the rate."""
        capacity.usual_loss = sample.loss
        capacity.loss_burst = max(1.0, sample.loss_burst)

    def _watch_experiment(
        self,
        experiment: _Experiment,
        receiver_id: ReceiverId,
        capacity: Capacity,
        sample: RateSample,
        now: float,
    ) -> None:
        """A bottleneck lets a larger share through at a lower rate; a lossy path doesn't."""
        before = experiment.before.get(receiver_id)
        if now < experiment.measure_from or before is None:
            return
        rate_before = experiment.rate_before
        # The rates that the two samples describe, which needn't be what the rate was as they came.
        rate_ratio = before.offered_bytes_per_s / max(sample.offered_bytes_per_s, 1.0)
        if rate_ratio > _LOWERED and 1.0 - sample.loss < _expected_in_between(before.arrived, rate_ratio):
            self._experiment = None
            self._believe_loss(capacity, sample)
            self.rate_bytes_per_s = max(self.rate_bytes_per_s, rate_before)
            self._believed_until = now + _BELIEVE_S
            self._believed_rate = rate_before
            self._hold_until = max(self._hold_until, now + ARRIVAL_WINDOW_S)  # for the others to learn theirs
            self.follow_group()
        else:
            capacity.troubled_at = now
            knee = max(before.offered_bytes_per_s * before.arrived, sample.arriving_bytes_per_s)
            self._meet(capacity, knee, _DEPTH_LOSS, Cause.NETWORK, now)


def _expected_in_between(arrived: float, rate_ratio: float) -> float:
    """Between what a lossy path and a bottleneck would let through at another rate.

    Args:
        arrived: share that arrived at the first rate.
        rate_ratio: first rate over second.
    """
    return (arrived + min(1.0, arrived * rate_ratio)) / 2
