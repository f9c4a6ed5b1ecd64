"""Requests for repairs: NACKs, each within its receiver's share of the cast's rate."""

from __future__ import annotations

import math
from typing import Final

from protocol.constants import SYMBOLS_MAX
from protocol.sending.receiver_record import ReceiverRecord
from protocol.sending.sender_statistics import SenderStatistics
from protocol.sending.transmission.cast_demand import CastDemand
from protocol.wire.messages import CastObject, Nack

_IDLE_REPAIRS_S: Final = 0.25
"""Repairs that one NACK may request when nothing else waits: short for those that come after it, long enough that one
receiver alone uses the rate."""


class RepairRequests:
    """The way of NACKs into the demand."""

    def __init__(self, demand: CastDemand, statistics: SenderStatistics, frame_bytes: int) -> None:
        self._demand = demand
        self._statistics = statistics
        self._frame_bytes = frame_bytes

    def take(
        self,
        record: ReceiverRecord,
        nack: Nack,
        *,
        alone: bool,
        rate_bytes_per_s: float,
        achieved_bytes_per_s: float,
        now: float,
    ) -> None:
        """Add the requested repairs to the demand, unless the receiver has to wait for them.

        Args:
            record: the receiver.
            nack: its NACK.
            alone: it is the only receiver.
            rate_bytes_per_s: rate of the cast.
            achieved_bytes_per_s: rate that is really sent; 0 if unknown.
            now: monotonic seconds.
        """
        if nack.object == CastObject.IMAGE and not record.repairable:
            return
        # Of a rate that isn't reached, a member gets its share of what is really sent.
        symbol_s = self._frame_bytes / min(rate_bytes_per_s, achieved_bytes_per_s or math.inf)
        if alone:
            symbols_max = math.inf
        elif self._demand.idle:
            symbols_max = max(SYMBOLS_MAX, _IDLE_REPAIRS_S * rate_bytes_per_s / self._frame_bytes)
        else:
            symbols_max = record.repair_allowance_s.available(now) / symbol_s
        nacked = self._demand.for_object(nack.object).nack(nack.deficits, nack.sequence, symbols_max)
        record.repair_allowance_s.spend(now, nacked.added_count * symbol_s)
        record.nacked_symbol_count += nacked.symbol_count
        self._statistics.nacked_symbol_count += nacked.symbol_count
