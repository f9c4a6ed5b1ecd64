"""The sender's plain counters of a whole cast, for metrics and the summary."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class SenderStatistics:
    """Counted by the session; times are monotonic seconds, None while something hasn't happened."""

    symbols_transmitted_count: int = 0
    bytes_transmitted: int = 0
    nacks_received_count: int = 0
    nacked_symbol_count: int = 0
    reports_received_count: int = 0
    flushes_sent_count: int = 0
    joins_count: int = 0
    started_at: float | None = None
    """When image data began."""
    main_finished_at: float | None = None
    """When everybody but the stragglers had ended."""
    ended_at: float | None = None
