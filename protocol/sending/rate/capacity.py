"""What one receiver can take, as far as it has shown: where its limit was, and how soon to look for it again.

A limit is a *knee*: the rate at which data arrived, or was written, while a queue stood. Below it nothing is lost.
After a knee was met the receiver's rate follows a cubic around it, as CUBIC's window does (RFC 9438 section 4.2): it
starts a little below so that the queue drains, is nearly flat at the knee, and bends up beyond it to find out whether
the limit has moved; if it has, the rate doubles until the next knee.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from protocol.model.bottleneck import Cause

_CUBIC_PER_S3: Final = 0.24
"""Back at the knee after half a second from 3 % below; 4 % above it as long after."""
_CUBIC_HICCUP_PER_S3: Final = 2.4
"""A socket overflows because a processor was elsewhere for a moment: a quarter below the knee is made up for in half a
second."""
_SAME_KNEE: Final = 0.94
_KNEE_DECAY: Final = 0.99
"""A link's rate is measured a little too low sooner than too high: so close to the last knee it's the same one."""
_ESCAPE: Final = 0.05
"""So far above the knee without a sign of trouble the limit must have moved."""
_ESCAPE_DOUBLING_S: Final = 0.2
_DOUBLINGS_MAX: Final = 20.0
_SHARE_SEGMENTS_PER_S3: Final = 0.4
"""RFC 9438's C, in segments per second cubed."""


@dataclasses.dataclass(frozen=True, slots=True)
class FirstLoss:
    """What was lost first, to be compared with a later sample at another rate."""

    offered_bytes_per_s: float
    arrived: float
    taken_at: float


@dataclasses.dataclass(slots=True)
class Capacity:
    """One receiver's limit; infinite as long as it hasn't met one.

    Attributes:
        knee_bytes_per_s: where its limit was last met.
        cause: what limited it there.
        proven_bytes_per_s: most that it took without trouble, lately.
        usual_loss: share of the datagrams that it loses whatever the rate, 0..1.
        loss_burst: datagrams lost in a row, on average.
        first_loss: an unusual loss that hasn't been explained yet.
        fill: its buffers at the last report, 0..1.
        troubled_at: when it last had trouble.
        cut_at: when its knee was last met.
        cut_delay_s: queueing delay then.
        drained_s: by how much going below the knee has shortened the queue since, were it its own.
        stubborn_count: cuts in a row that the queue didn't follow.
        crowded_until: somebody else's traffic fills the queue before it until then, so that its delay says nothing.
        exempt: it doesn't limit the group.
        escapes: beyond its knee its rate may double, not only follow the cubic.
    """

    knee_bytes_per_s: float = math.inf
    cause: Cause = Cause.NETWORK
    proven_bytes_per_s: float = 0.0
    usual_loss: float = 0.0
    loss_samples: int = 0
    loss_burst: float = 1.0
    first_loss: FirstLoss | None = None
    fill: float = 0.0
    troubled_at: float = -math.inf
    cut_at: float = -math.inf
    cut_delay_s: float = 0.0
    drained_s: float = 0.0
    stubborn_count: int = 0
    crowded_until: float = -math.inf
    exempt: bool = False
    _depth: float = 0.0
    _cubic_per_s3: float = _CUBIC_PER_S3
    escapes: bool = True
    _probe_s: float = 0.0

    @property
    def limited(self) -> bool:
        """Whether it has met a limit."""
        return math.isfinite(self.knee_bytes_per_s)

    @property
    def sustainable_bytes_per_s(self) -> float:
        """The rate that it is known to sustain: its knee, or what it has taken so far."""
        return (
            max(self.knee_bytes_per_s, self.proven_bytes_per_s) if self.limited else self.proven_bytes_per_s
        )

    def meet_knee(self, knee_bytes_per_s: float, depth: float, cause: Cause, now: float) -> None:
        """Its limit was met.

        Args:
            knee_bytes_per_s: what it can take.
            depth: share to stay below that at first, so that queues drain.
            cause: what limits it.
            now: monotonic seconds.
        """
        before = self.knee_bytes_per_s
        if cause is Cause.NETWORK and _SAME_KNEE * before < knee_bytes_per_s < before:
            knee_bytes_per_s = max(knee_bytes_per_s, _KNEE_DECAY * before)
        self.knee_bytes_per_s = knee_bytes_per_s
        self.proven_bytes_per_s = min(self.proven_bytes_per_s, knee_bytes_per_s)
        self.cause = cause
        self.cut_at = now
        self._depth = depth
        self._cubic_per_s3 = _CUBIC_HICCUP_PER_S3 if cause is Cause.SOCKET else _CUBIC_PER_S3
        # A disk's buffers take so long to fill that a doubling rate would be far beyond the limit when they have.
        self.escapes = cause in (Cause.NETWORK, Cause.SOCKET)
        self._probe_s = 0.0
        self.drained_s = 0.0

    def meet_shared_knee(
        self, knee_bytes_per_s: float, depth: float, segment_rate_per_s: float, rtt_s: float, now: float
    ) -> None:
        """Its limit was met on a link that it shares: from here it climbs as a TCP of that window would.

        Args:
            knee_bytes_per_s: what it had when it lost.
            depth: share to give up.
            segment_rate_per_s: the same rate in datagrams per second.
            rtt_s: round trip, queue included.
            now: monotonic seconds.
        """
        self.meet_knee(knee_bytes_per_s, depth, Cause.NETWORK, now)
        window_segments = max(1.0, segment_rate_per_s * rtt_s)
        self._cubic_per_s3 = _SHARE_SEGMENTS_PER_S3 / window_segments
        self.escapes = False

    def forget_knee(self) -> None:
        """It takes all that it gets: whatever its limit was, it is higher now."""
        self.knee_bytes_per_s = math.inf

    def probe(self, elapsed_s: float) -> None:
        """The rate was near its own for ``elapsed_s`` and nothing spoke against more."""
        self._probe_s += elapsed_s

    def allowed_bytes_per_s(self) -> float:
        """The rate that it may get now."""
        if not self.limited:
            return math.inf
        back_s = math.cbrt(self._depth / self._cubic_per_s3)
        beyond_s = self._probe_s - back_s
        growth = self._cubic_per_s3 * beyond_s**3
        if growth > _ESCAPE and self.escapes:
            escape_s = beyond_s - math.cbrt(_ESCAPE / self._cubic_per_s3)
            return (
                self.knee_bytes_per_s
                * (1.0 + _ESCAPE)
                * math.exp2(min(_DOUBLINGS_MAX, escape_s / _ESCAPE_DOUBLING_S))
            )
        return self.knee_bytes_per_s * (1.0 + growth)

    def learn_loss(self, loss: float, burst: float) -> None:
        """Take one report's loss in quiet times: the path's own. The first reports count most."""
        self.loss_samples += 1
        weight = max(0.1, 1.0 / self.loss_samples)
        self.usual_loss += weight * (loss - self.usual_loss)
        if burst > 0:
            self.loss_burst += weight * (burst - self.loss_burst)
