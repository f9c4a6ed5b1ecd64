"""The content of a receiver's REPORTs."""

from __future__ import annotations

from typing import Final

from protocol.receiving.arrival import ArrivalMeter
from protocol.receiving.group_timing import GroupTiming
from protocol.receiving.receiver_statistics import ReceiverStatistics
from protocol.schema.binary_fields import UInt
from protocol.shared.sequence import LossCounter
from protocol.wire.messages import BOTTLENECKS, Report

_HIGHEST: Final = {field.name: field.kind.high for field in Report.FIELDS if isinstance(field.kind, UInt)}
"""A count that exceeds its field, after numbers that leap, is reported as the largest: no receiver ends for that."""


class ReportWriter:
    """Writer of reports about the datagrams and the work of one receiver."""

    def __init__(
        self, group: GroupTiming, loss: LossCounter, arrival: ArrivalMeter, statistics: ReceiverStatistics
    ) -> None:
        self._group = group
        self._loss = loss
        self._arrival = arrival
        self._statistics = statistics

    def write(
        self,
        *,
        backlog: float,
        pool_bytes: int,
        pool_drop_count: int,
        needed_count: int,
        now: float,
    ) -> Report:
        """Return a report of the current state.

        Args:
            backlog: share of the assembly's buffers whose blocks are being decoded or written.
            pool_bytes: size of these buffers.
            pool_drop_count: symbols dropped without a free buffer.
            needed_count: blocks that aren't verified yet.
            now: monotonic seconds.
        """
        statistics = self._statistics
        recent_expected_count, recent_received_count = self._arrival.recent_counts
        pool_is_fuller = backlog >= statistics.socket_fill
        figures = {
            "echo_us": self._group.echo_us,
            "echo_delay_us": self._group.echo_delay_us(now),
            "expected_count": self._loss.expected_count,
            "received_count": min(self._loss.received_count, self._loss.expected_count),
            "loss_event_count": self._loss.loss_event_count,
            "recent_expected_count": recent_expected_count,
            "recent_received_count": recent_received_count,
            "arriving_bytes_per_s": int(self._arrival.rate_bytes_per_s(now)),
            "queue_delay_us": int(self._arrival.queue_delay_s * 1e6),
            "socket_drop_count": statistics.socket_drop_count,
            "pool_drop_count": pool_drop_count,
            "fill_permille": min(1000, int(max(backlog, statistics.socket_fill) * 1000)),
            "buffer_bytes": pool_bytes if pool_is_fuller else statistics.socket_buffer_bytes,
            "bottleneck": BOTTLENECKS.index(statistics.bottleneck),
            "blocks_verified_count": statistics.blocks_verified_count,
            "blocks_needed_count": needed_count,
            "bytes_written": statistics.bytes_written,
            "nacks_sent_count": statistics.nacks_sent_count,
            "parity_repaired_count": statistics.blocks_repaired_by_parity_count,
        }
        return Report(**{name: min(figure, _HIGHEST[name]) for name, figure in figures.items()})
