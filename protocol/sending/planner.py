"""The plans of a cast: the symbols to send next, and the digests to compute."""

from __future__ import annotations

from protocol.sending.feedback.poisoned_reports import PoisonedReports
from protocol.sending.rate.parity import ParityPlanner
from protocol.sending.sender_run import SenderRun
from protocol.sending.transmission.cast_demand import CastDemand
from protocol.sending.transmission.demand import SegmentList
from protocol.sending.transmission.send_plan import SendPlan


class Planner:
    """Planner of one run.

    Attributes:
        next_sequence: number of the next symbol to be planned, extended to 64 bits.
    """

    def __init__(
        self,
        demand: CastDemand,
        parity: ParityPlanner,
        poisoned: PoisonedReports,
        run: SenderRun,
        next_sequence: int,
    ) -> None:
        """Start with nothing planned; ``next_sequence`` will be the first number."""
        self.next_sequence = next_sequence
        self._demand = demand
        self._parity = parity
        self._poisoned = poisoned
        self._run = run

    def next_plan(self, symbols_max: int, *, casting: bool, now: float) -> SendPlan | None:
        """Return the next symbols to send, repairs before new data; None when there is nothing to send.

        Args:
            symbols_max: size limit of the plan.
            casting: the image is sent, not only the manifest.
            now: monotonic seconds.
        """
        segments = SegmentList(symbols_max)
        sequence = self._plan_symbols(segments, casting=casting)
        requests = self._poisoned.take_due(now)
        if segments.room == symbols_max and not requests:
            return None
        plan = SendPlan(
            segments.array(), self.next_sequence, symbols_max - segments.room, self._run.keys, requests
        )
        self.next_sequence = plan.next_sequence
        assert plan.next_sequence & 0xFFFFFFFF == sequence
        return plan

    def _plan_symbols(self, segments: SegmentList, *, casting: bool) -> int:
        """Fill ``segments``; return the number after the last symbol."""
        parity, manifest, image = self._parity, self._demand.manifest, self._demand.image
        sequence = manifest.plan_repairs(segments, self.next_sequence & 0xFFFFFFFF, parity.loss)
        sequence = manifest.plan_pass(segments, sequence, parity.symbols)
        if casting:
            sequence = image.plan_repairs(segments, sequence, parity.loss)
            sequence = image.plan_pass(segments, sequence, parity.symbols, parity.interleave_depth)
        return sequence
