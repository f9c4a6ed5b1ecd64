"""A receiver's counters of its session, for metrics, reports and the summary."""

from __future__ import annotations

import dataclasses

from protocol.model.bottleneck import Cause


@dataclasses.dataclass(slots=True)
class ReceiverStatistics:
    """Counters since the join, for metrics, reports and the summary."""

    frames_received_count: int = 0
    bytes_received: int = 0
    blocks_assembled_count: int = 0
    blocks_repaired_by_parity_count: int = 0
    blocks_repaired_by_nack_count: int = 0
    blocks_rejected_count: int = 0
    blocks_fetched_count: int = 0
    blocks_verified_count: int = 0
    nacks_sent_count: int = 0
    nacked_symbol_count: int = 0
    socket_drop_count: int = 0
    socket_fill: float = 0.0
    socket_buffer_bytes: int = 0
    bytes_written: int = 0
    bottleneck: Cause = Cause.NETWORK
    first_data_at: float | None = None
