"""The delivery rate sample: one receiver's report as rate control uses it."""

from __future__ import annotations

import dataclasses
from typing import Final

from protocol.constants import QUEUE_DELAY_HIGH_S, REPORT_EARLY_FILL_STEP
from protocol.model.bottleneck import Cause

_QUEUE_BYTES_MIN: Final = 12_000
"""Eight full datagrams: less is jitter of a machine's scheduler and no queue. CoDel (RFC 8289) spares one packet."""


@dataclasses.dataclass(frozen=True, slots=True)
class RateSample:
    """Delivery at one receiver during its last 100 ms.

    Attributes:
        expected_count: datagrams sent in that time.
        received_count: those of them that arrived.
        local_drop_count: datagrams dropped at its socket or for want of a buffer since its last report.
        fill: share of its buffers in use, 0..1.
        loss_burst: mean number of datagrams lost in a row; 0 if unknown.
        arriving_bytes_per_s: delivery rate, in bytes of frames; 0 if unknown.
        queue_delay_s: least time that datagrams spent in queues.
        taken_bytes_per_s: rate at which it reads its socket, in bytes of frames; 0 if unknown.
        written_bytes_per_s: rate at which it writes, in bytes of frames; 0 if unknown.
        cause: its own limit, as it reports it.
    """

    expected_count: int
    received_count: int
    local_drop_count: int = 0
    fill: float = 0.0
    loss_burst: float = 0.0
    arriving_bytes_per_s: float = 0.0
    queue_delay_s: float = 0.0
    taken_bytes_per_s: float = 0.0
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
        """Rate at which these datagrams were sent."""
        return self.arriving_bytes_per_s / max(1.0 - self.loss, 1e-3)

    @property
    def kept_up_bytes_per_s(self) -> float:
        """Delivery rate that it also works off, as far as is known: what only fills its buffers doesn't count."""
        work_bytes_per_s = (
            self.taken_bytes_per_s if self.fill <= REPORT_EARLY_FILL_STEP else self.written_bytes_per_s
        )
        return min(self.arriving_bytes_per_s, work_bytes_per_s)

    @property
    def queued(self) -> bool:
        """Return whether a queue stands on the path: a delay that is as long as several datagrams take.

        At a low rate few datagrams arrive in the time of which the least delay counts, and a virtual machine that waits
        for its processor delays each of them.
        """
        return self.queue_delay_s > QUEUE_DELAY_HIGH_S and (
            not self.arriving_bytes_per_s or self.queue_delay_s * self.arriving_bytes_per_s > _QUEUE_BYTES_MIN
        )
