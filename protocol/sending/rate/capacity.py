"""Capacity of one receiver: its knee, and congestion avoidance around it.

A *knee* is the delivery rate (or the rate of writing) that was measured at a limit; below it nothing is lost. From a
knee on the allowed rate follows a cubic around it, as CUBIC's window does (RFC 9438 section 4.2). It starts a little
below the knee so that the queue drains, is nearly flat at the knee, and bends up beyond it to find out whether the
limit has moved. If it has, the rate doubles until the next knee.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from protocol.model.bottleneck import Cause
from protocol.sending.rate.competing_traffic import CompetingTraffic

ALIKE: Final = 1.15
"""Ratio of two rates up to which receivers have the same limit: delivery rates of one link differ by a few percent."""
_CUBIC_PER_S3: Final = 0.24
"""C of the cubic: back at the knee 0.5 s after a cut to 3 % below it, and 3 % above it as long after that."""
_ESCAPE: Final = 0.05
"""Share above the knee from which on, without a sign of trouble, the limit must have moved."""
_ESCAPE_DOUBLING_S: Final = 0.2
"""Slower than slow start, since the limit is usually near: two reports for each doubling."""
_SHARE_SEGMENTS_PER_S3: Final = 0.4
"""C of RFC 9438 section 5, in segments per second cubed."""
_LOSS_WEIGHT_MIN: Final = 0.1
"""Weight of one report in the usual loss: a bad one is forgotten after a second."""


@dataclasses.dataclass(slots=True)
class Capacity:
    """Limit of one receiver; infinite until it meets one.

    Attributes:
        knee_bytes_per_s: rate at which it last met its limit.
        cause: cause of that limit.
        measured_bytes_per_s: knee as it was reported; the knee itself is higher as long as no other report confirms it.
        proven_bytes_per_s: highest recent delivery rate without trouble.
        usual_loss: share of the datagrams that it loses at any rate, 0..1.
        latest_loss: loss of the last report with data.
        previous_loss: loss of the report before it.
        loss_samples: number of reports in the usual loss.
        loss_burst: mean number of datagrams lost in a row.
        fill: share of its buffers in use at the last report, 0..1.
        taken_bytes_per_s: rate at which it read its socket by then.
        reported_at: time of that report.
        cut_at: time at which it last met its knee.
        competing: competing traffic in the queue before it.
        exempt: it doesn't limit the group.
        escapes: beyond its knee its rate doubles, instead of following the cubic.
    """

    knee_bytes_per_s: float = math.inf
    cause: Cause = Cause.NETWORK
    measured_bytes_per_s: float = math.inf
    proven_bytes_per_s: float = 0.0
    usual_loss: float = 0.0
    latest_loss: float = 0.0
    previous_loss: float = 0.0
    loss_samples: int = 0
    loss_burst: float = 1.0
    fill: float = 0.0
    taken_bytes_per_s: float = 0.0
    reported_at: float = -math.inf
    cut_at: float = -math.inf
    competing: CompetingTraffic = dataclasses.field(default_factory=CompetingTraffic)
    exempt: bool = False
    escapes: bool = True
    _backoff: float = 0.0
    _cubic_per_s3: float = _CUBIC_PER_S3
    _probe_s: float = 0.0

    @property
    def limited(self) -> bool:
        """Return whether it has met a limit."""
        return math.isfinite(self.knee_bytes_per_s)

    @property
    def sustainable_bytes_per_s(self) -> float:
        """Rate that it is known to sustain: its knee, or its highest delivery rate so far."""
        return (
            max(self.measured_bytes_per_s, self.proven_bytes_per_s)
            if self.limited
            else self.proven_bytes_per_s
        )

    def meet_knee(self, knee_bytes_per_s: float, backoff: float, cause: Cause, now: float) -> None:
        """Start congestion avoidance around a knee.

        Args:
            knee_bytes_per_s: rate that it can take.
            backoff: share to stay below that at first, so that queues drain.
            cause: cause of the limit.
            now: monotonic seconds.
        """
        self.knee_bytes_per_s = self.measured_bytes_per_s = knee_bytes_per_s
        self.disprove(knee_bytes_per_s)
        self.cause = cause
        self.cut_at = now
        self._backoff = backoff
        self._cubic_per_s3 = _CUBIC_PER_S3
        # A machine's buffers fill so slowly that a doubling rate would be far beyond the limit when they are full.
        self.escapes = cause is Cause.NETWORK
        self._probe_s = 0.0

    def meet_shared_knee(
        self, knee_bytes_per_s: float, backoff: float, segment_rate_per_s: float, rtt_s: float, now: float
    ) -> None:
        """Start congestion avoidance as TCP does it, on a link that is shared with other traffic.

        Args:
            knee_bytes_per_s: delivery rate at the time of the loss.
            backoff: multiplicative decrease.
            segment_rate_per_s: the same rate in datagrams per second.
            rtt_s: round-trip time, queue included.
            now: monotonic seconds.
        """
        self.meet_knee(knee_bytes_per_s, backoff, Cause.NETWORK, now)
        window_segments = max(1.0, segment_rate_per_s * rtt_s)
        self._cubic_per_s3 = _SHARE_SEGMENTS_PER_S3 / window_segments
        self.escapes = False

    def lower_knee(self, target_bytes_per_s: float) -> None:
        """Move the knee down so that the same cut goes to this rate: another report confirms it."""
        self.knee_bytes_per_s = min(self.knee_bytes_per_s, target_bytes_per_s / (1.0 - self._backoff))
        self.disprove(self.knee_bytes_per_s)

    def disprove(self, bytes_per_s: float) -> None:
        """Note that it works off no more than this now, whatever it has proven before."""
        self.proven_bytes_per_s = min(self.proven_bytes_per_s, bytes_per_s)

    def raise_knee(self) -> None:
        """Move the knee up to the rate that it has proven since: the limit has moved."""
        if self.limited:
            self.knee_bytes_per_s = self.measured_bytes_per_s = self.sustainable_bytes_per_s

    def probe(self, elapsed_s: float) -> None:
        """Advance the cubic by a time in which the cast sent at nearly the allowed rate."""
        self._probe_s += elapsed_s

    def allowed_bytes_per_s(self) -> float:
        """Return the present allowed rate."""
        if not self.limited:
            return math.inf
        back_s = math.cbrt(self._backoff / self._cubic_per_s3)
        beyond_s = self._probe_s - back_s
        growth = self._cubic_per_s3 * beyond_s**3
        if growth > _ESCAPE and self.escapes:
            escape_s = beyond_s - math.cbrt(_ESCAPE / self._cubic_per_s3)
            return self.knee_bytes_per_s * (1.0 + _ESCAPE) * math.exp2(escape_s / _ESCAPE_DOUBLING_S)
        return self.knee_bytes_per_s * (1.0 + growth)

    def before_random_loss(self, arriving_bytes_per_s: float) -> float:
        """Return the rate of which the usual loss leaves this delivery rate."""
        return arriving_bytes_per_s / max(1.0 - self.usual_loss, 1e-3)

    def set_usual_loss(self, loss: float, burst: float) -> None:
        """Take ``loss`` for random, at any rate."""
        self.usual_loss = loss
        self.loss_burst = max(1.0, burst)

    def learn_loss(self, loss: float, burst: float) -> None:
        """Add one report without trouble to the usual loss; the first reports count most."""
        self.loss_samples += 1
        weight = max(_LOSS_WEIGHT_MIN, 1.0 / self.loss_samples)
        self.usual_loss += weight * (loss - self.usual_loss)
        if burst > 0:
            self.loss_burst += weight * (burst - self.loss_burst)
