"""The automatic rate of a cast, in the steps of ``docs/explanation/rate-control.md``.

1. *Slow start*: the rate doubles until a receiver meets a limit.
2. *Delivery rate sample*: every report describes the last 100 ms at one receiver.
3. *Knee*: at a limit, the delivery rate is that receiver's knee, and its allowed rate falls a little below it. A
   receiver limit shows in full buffers and socket drops, a full link in a standing queue.
4. *Loss experiment*: loss without a queue is congestion or random; its share at another rate tells which.
5. *Competing traffic*: a queue that doesn't drain below the knee isn't the cast's; then loss decides, as for TCP.
6. *Congestion avoidance*: the allowed rate follows a cubic around the knee (:mod:`~protocol.sending.rate.capacity`).
7. *Current limiting receiver*: the cast's rate is the least allowed rate of the receivers that count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from protocol.constants import (
    RATE_BYTES_PER_S_MAX,
    RATE_BYTES_PER_S_MIN,
    RATE_BYTES_PER_S_START,
    REPAIR_LATENCY_S,
    REPORT_EARLY_FILL_STEP,
    REPORT_INTERVAL_S,
)
from protocol.model.bottleneck import NO_BOTTLENECK, Bottleneck, Cause
from protocol.model.session_records import ReceiverId
from protocol.sending.rate.capacity import ALIKE, Capacity
from protocol.sending.rate.limit_claims import LimitClaims
from protocol.sending.rate.loss_experiment import BETA, LossExperiment
from protocol.sending.rate.rate_sample import RateSample
from protocol.shared.feedback_timing import ARRIVAL_WINDOW_S

_TICK_S: Final = 0.02
"""Pace of the climb: a comparison of 1000 receivers for every batch would cost too much."""
_CLIMB_DOUBLING_S: Final = 0.06
"""From 200 Mbit/s to 4 Gbit/s in a quarter of a second; a queue is reported within two polls of a receiver."""
_HEADROOM: Final = 2.0
"""Rate over the rate that is really sent, at most: an application-limited sender earns no burst (RFC 7661)."""
_UNPROVEN: Final = 2.0
"""Rate over the highest delivery rate that any receiver has reported, at most: slow machines that are flooded from the
start report late. In a fast room each report allows twice the rate before it."""
_NEAR: Final = 0.9
"""Share of an allowed rate from which on the cast tests it."""
_LATE: Final = 2.0
"""Report intervals after which a machine is too busy to report, and its knee isn't probed until it does."""
_SILENT: Final = 5.0
"""Report intervals without a report of any receiver after which the group is too busy to report: slow machines that are
flooded do nothing but take packets. By then they have been sent less than a socket holds."""
_BACKOFF: Final = 0.03
"""Distance below a link's knee, so that the queue drains; a machine's buffers need more to drain."""
_FILL_HIGH: Final = 0.5
"""Share of a receiver's buffers from which on it works off less than it gets."""
_LONE_CUT: Final = 0.9
"""Share of the rate that is left after one report of a limit that no other report confirms."""
_LOSS_MARGIN: Final = 0.015
"""Loss above the usual one that is unusual, beside three standard deviations. Only real casts miss it: losses on real
paths vary by more than chance, simulated ones don't."""


class RateController:
    """Automatic rate up to a ceiling, or a fixed one.

    Attributes:
        rate_bytes_per_s: present rate, in bytes of frames.
        fixed: the operator has set the rate, and it follows no receiver.
        capacities: by receiver; those that are exempt don't count.
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
        self._experiment = LossExperiment()
        self._claims = LimitClaims()
        self._cut_at = -math.inf
        self._delivered_bytes_per_s = 0.0
        self._silent_s = 0.0
        self._floor_bytes_per_s = RATE_BYTES_PER_S_START

    # -- state for other modules ------------------------------------------------------------------------------

    def usual_loss(self, receiver_id: ReceiverId) -> float:
        """Return the share that this receiver loses at any rate."""
        capacity = self.capacities.get(receiver_id)
        return capacity.usual_loss if capacity else 0.0

    @property
    def bottleneck(self) -> Bottleneck:
        """The cause of the present rate and, if it is one receiver's, that receiver."""
        if self.fixed or self.rate_bytes_per_s >= 0.98 * self.maximum_bytes_per_s:
            return Bottleneck(Cause.CEILING)
        counted = [(item.allowed_bytes_per_s(), key) for key, item in self._counted()]
        least, receiver_id = min(counted, default=(math.inf, ReceiverId(0)))
        if self.rate_bytes_per_s < _NEAR * least:
            return NO_BOTTLENECK
        cause = self.capacities[receiver_id].cause
        if cause is Cause.NETWORK and len(counted) > 1:
            alike_count = sum(allowed < ALIKE * least for allowed, _ in counted)
            if 2 * alike_count > len(counted):
                return Bottleneck(Cause.NETWORK)  # of most receivers
        return Bottleneck(cause, receiver_id)

    def forget(self, receiver_id: ReceiverId) -> None:
        """Remove a receiver that has left the group."""
        self.capacities.pop(receiver_id, None)
        self._experiment.forget(receiver_id)
        self._claims.forget(receiver_id)

    # -- slow start and congestion avoidance ------------------------------------------------------------------

    def tick(
        self, achieved_bytes_per_s: float, now: float, report_interval_s: float = REPORT_INTERVAL_S
    ) -> None:
        """Raise the rate if no receiver limits it; may be called at any time.

        Args:
            achieved_bytes_per_s: rate that was really sent recently.
            now: monotonic seconds.
            report_interval_s: time between two reports of one receiver.
        """
        elapsed_s = now - self._tick_at
        if self.fixed or elapsed_s < _TICK_S:
            return
        self._tick_at = now
        self._experiment.expire(now)
        step_s = min(elapsed_s, 2 * _TICK_S)
        for _, capacity in self._counted():
            if not capacity.limited:
                continue
            below_share = max(0.0, 1.0 - self.rate_bytes_per_s / capacity.knee_bytes_per_s)
            capacity.competing.drain(below_share, step_s)
            allowed = capacity.allowed_bytes_per_s()
            # A machine's buffers fill slowly: it has to work off more, too.
            done = (
                achieved_bytes_per_s
                if capacity.escapes
                else min(achieved_bytes_per_s, capacity.taken_bytes_per_s)
            )
            tested = self.rate_bytes_per_s >= _NEAR * allowed and done * _HEADROOM >= allowed
            tested &= capacity.escapes or now <= capacity.reported_at + _LATE * report_interval_s
            if tested and capacity.fill <= _FILL_HIGH:
                capacity.probe(step_s)
        proven = min(achieved_bytes_per_s * _HEADROOM, self._delivered_bytes_per_s * _UNPROVEN)
        headroom = max(self._floor_bytes_per_s, proven)
        self._silent_s += step_s
        if self._silent_s > _SILENT * report_interval_s:
            self._slow_down_in_silence(step_s / report_interval_s)
        elif not self._experiment.overload:
            climbed = self.rate_bytes_per_s * 2.0 ** (step_s / _CLIMB_DOUBLING_S)
            self.rate_bytes_per_s = max(self.rate_bytes_per_s, min(climbed, headroom))
        self._fall_to(self.maximum_bytes_per_s)
        self.follow_group(now)

    def set_maximum(self, maximum_bytes_per_s: float) -> None:
        """Change the ceiling, also that of a fixed rate, at once."""
        self.maximum_bytes_per_s = max(RATE_BYTES_PER_S_MIN, min(maximum_bytes_per_s, RATE_BYTES_PER_S_MAX))
        if self.fixed:
            self.rate_bytes_per_s = min(self._wished_bytes_per_s, self.maximum_bytes_per_s)
        else:
            self._fall_to(self.maximum_bytes_per_s)

    def follow_group(self, now: float) -> None:
        """Fall to the allowed rate of the current limiting receiver."""
        if self.fixed:
            return
        allowed = min((item.allowed_bytes_per_s() for _, item in self._counted()), default=math.inf)
        if allowed < BETA * self.rate_bytes_per_s:
            self._cut_at = now  # the group has changed, as at the start of the tail
        self._fall_to(allowed)

    def _slow_down_in_silence(self, elapsed_intervals: float) -> None:
        """Halve the rate in each report interval without a report, as RFC 5348 section 4.4 does it.

        The first rate is then no longer taken for safe.
        """
        self._floor_bytes_per_s = RATE_BYTES_PER_S_MIN
        self._fall_to(self.rate_bytes_per_s * 2.0**-elapsed_intervals)

    def _fall_to(self, target: float) -> None:
        self.rate_bytes_per_s = max(RATE_BYTES_PER_S_MIN, min(self.rate_bytes_per_s, target))

    def _counted(self) -> Iterable[tuple[ReceiverId, Capacity]]:
        return ((key, item) for key, item in self.capacities.items() if not item.exempt)

    # -- reports ----------------------------------------------------------------------------------------------

    def add_sample(self, receiver_id: ReceiverId, sample: RateSample, grtt_s: float, now: float) -> None:
        """Use one receiver's report."""
        capacity = self.capacities.setdefault(receiver_id, Capacity())
        capacity.fill = sample.fill
        capacity.taken_bytes_per_s = sample.taken_bytes_per_s
        capacity.reported_at = now
        self._silent_s = 0.0
        self._delivered_bytes_per_s = max(self._delivered_bytes_per_s, sample.taken_bytes_per_s)
        if sample.fill > REPORT_EARLY_FILL_STEP and sample.written_bytes_per_s:
            capacity.disprove(sample.written_bytes_per_s)  # its buffers have taken the rest
        if sample.expected_count:
            capacity.previous_loss, capacity.latest_loss = capacity.latest_loss, sample.loss
        if sample.expected_count and not sample.queued:
            capacity.competing.queue_empty()
        settled = now > capacity.cut_at + self._feedback_round_s(grtt_s)
        if sample.local_drop_count or sample.fill > _FILL_HIGH:
            self._experiment.forget(receiver_id)
            if settled:
                self._on_receiver_limit(receiver_id, capacity, sample, now)
        elif sample.queued and not self._by_loss(capacity, now):
            self._experiment.forget(receiver_id)
            if settled:
                self._on_standing_queue(receiver_id, capacity, sample, grtt_s, now)
        elif not sample.expected_count or self._conclude(receiver_id, capacity, sample, grtt_s, now):
            return
        elif self._is_unusual(capacity, sample, now):
            self._on_loss(receiver_id, capacity, sample, grtt_s, settled, now)
        else:
            self._on_quiet(capacity, sample, settled)

    @staticmethod
    def _feedback_round_s(grtt_s: float) -> float:
        """Return the time for which reports may still describe the rate before a cut."""
        return grtt_s + ARRIVAL_WINDOW_S + REPAIR_LATENCY_S

    def _by_loss(self, capacity: Capacity, now: float) -> bool:
        """Return whether loss decides, since the queue is also other traffic's."""
        return now < capacity.competing.until or (self._share and not capacity.exempt)

    def _is_unusual(self, capacity: Capacity, sample: RateSample, now: float) -> bool:
        variance = max(capacity.usual_loss, 0.01) * max(1.0, capacity.loss_burst) / sample.expected_count
        margin = 0.0 if self._by_loss(capacity, now) else _LOSS_MARGIN
        return sample.loss > capacity.usual_loss + margin + 3 * math.sqrt(variance)

    def _on_quiet(self, capacity: Capacity, sample: RateSample, settled: bool) -> None:
        capacity.proven_bytes_per_s = max(capacity.proven_bytes_per_s, sample.kept_up_bytes_per_s)
        if settled and not sample.queued:  # a full queue's drops aren't random
            capacity.learn_loss(sample.loss, sample.loss_burst)

    def _cut(
        self,
        receiver_id: ReceiverId,
        capacity: Capacity,
        knee: float,
        cause: Cause,
        sample: RateSample,
        grtt_s: float,
        now: float,
    ) -> None:
        """Set a receiver's knee; a link that is to be shared is left and taken again as by TCP.

        The first report of a limit that nobody else reports lowers the rate by a tenth: it may be false.
        """
        measured = knee = max(knee, RATE_BYTES_PER_S_MIN)
        shared = self._share and cause is Cause.NETWORK and not capacity.exempt
        # A link's queue holds milliseconds, a machine's buffers seconds.
        backoff = _BACKOFF if cause is Cause.NETWORK and not shared else 1.0 - BETA
        if not capacity.exempt:
            target = self._confirmed_target(receiver_id, capacity, (1.0 - backoff) * knee, now)
            knee = target / (1.0 - backoff)
        if shared:
            rtt_s = grtt_s + sample.queue_delay_s
            capacity.meet_shared_knee(knee, backoff, knee / self._frame_bytes, rtt_s, now)
        else:
            capacity.meet_knee(knee, backoff, cause, now)
            capacity.escapes &= now >= capacity.competing.until
        capacity.measured_bytes_per_s = measured
        capacity.disprove(measured)
        if not (capacity.exempt or self.fixed):
            self._cut_at = now
            self._fall_to(capacity.allowed_bytes_per_s())

    def _confirmed_target(
        self, receiver_id: ReceiverId, capacity: Capacity, target: float, now: float
    ) -> float:
        """Return the rate after a cut, as far as other reports confirm it; a lone report lowers it by a tenth."""
        confirmed = self._claims.add(receiver_id, target, now)
        for other_id, other_target in self._claims.confirmed_by(receiver_id, target, now).items():
            self.capacities[other_id].lower_knee(other_target)
        if all(other is capacity for _, other in self._counted()):
            return target  # it can only harm itself
        return max(target, min(_LONE_CUT * self.rate_bytes_per_s, confirmed))

    def _on_receiver_limit(
        self, receiver_id: ReceiverId, capacity: Capacity, sample: RateSample, now: float
    ) -> None:
        """Cut to the rate that a receiver works off: its buffers fill, or its socket overflows."""
        cause = Cause.SOCKET if sample.cause is Cause.NETWORK else sample.cause
        worked_off = sample.taken_bytes_per_s if cause is Cause.SOCKET else sample.written_bytes_per_s
        self._cut(receiver_id, capacity, worked_off or BETA * self.rate_bytes_per_s, cause, sample, 0.0, now)

    def _on_standing_queue(
        self, receiver_id: ReceiverId, capacity: Capacity, sample: RateSample, grtt_s: float, now: float
    ) -> None:
        """Cut to the delivery rate, which is all that the link carries, or notice competing traffic."""
        if (
            capacity.limited
            and not capacity.exempt
            and capacity.competing.queue_seen(sample.queue_delay_s, now)
        ):
            return
        capacity.competing.start_cut(sample.queue_delay_s)
        arriving = sample.arriving_bytes_per_s or BETA * self.rate_bytes_per_s
        self._cut(
            receiver_id, capacity, capacity.before_random_loss(arriving), Cause.NETWORK, sample, grtt_s, now
        )

    def _on_loss(
        self,
        receiver_id: ReceiverId,
        capacity: Capacity,
        sample: RateSample,
        grtt_s: float,
        settled: bool,
        now: float,
    ) -> None:
        """Take an unusual loss for random below the knee, for congestion above it; before it, start an experiment."""
        rate = self.rate_bytes_per_s
        queued = sample.queued
        competing = now < capacity.competing.until
        # Reports of a round after another receiver's cut describe the rate before it.
        settled &= capacity.exempt or now > self._cut_at + self._feedback_round_s(grtt_s)
        below_knee = capacity.limited and rate < capacity.knee_bytes_per_s and not queued
        if self.fixed or (below_knee and settled and not competing and not capacity.exempt):
            # A link that isn't full drops nothing. A single report may be false, so two have to show the loss.
            confirmed_loss = max(capacity.usual_loss, min(sample.loss, capacity.previous_loss))
            capacity.set_usual_loss(confirmed_loss, sample.loss_burst)
        elif competing or capacity.limited or capacity.exempt or queued:
            if settled:
                arriving = sample.arriving_bytes_per_s or (1.0 - sample.loss) * rate
                knee = capacity.before_random_loss(arriving)
                self._cut(receiver_id, capacity, knee, Cause.NETWORK, sample, grtt_s, now)
        else:
            self._experiment.add_loss(receiver_id, sample, now)

    def _conclude(
        self, receiver_id: ReceiverId, capacity: Capacity, sample: RateSample, grtt_s: float, now: float
    ) -> bool:
        """Act on the result of an experiment for one receiver; return whether there is one."""
        round_s = self._feedback_round_s(grtt_s)
        if now < self._cut_at + round_s:
            return False
        result = self._experiment.result(receiver_id, sample, round_s, now)
        if result is None:
            return False
        congestion, knee = result
        if congestion:
            self._cut(receiver_id, capacity, knee, Cause.NETWORK, sample, grtt_s, now)
        else:
            capacity.set_usual_loss(sample.loss, sample.loss_burst)
        return True
