"""The sender's counters of a whole cast, for metrics and the summary."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class SenderStatistics:
    """Counters of a sender session; times are monotonic seconds, None before the event."""

    symbols_transmitted_count: int = 0
    bytes_transmitted: int = 0
    nacks_received_count: int = 0
    nacked_symbol_count: int = 0
    reports_received_count: int = 0
    poisoned_reports_count: int = 0
    digests_sent_count: int = 0
    blocks_served_count: int = 0
    """Blocks that receivers fetched over the control API."""
    flushes_sent_count: int = 0
    joins_count: int = 0
    started_at: float | None = None
    """Time of the first image data."""
    main_finished_at: float | None = None
    """Time when all receivers but the stragglers had ended."""
    ended_at: float | None = None
