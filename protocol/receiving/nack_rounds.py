"""The rounds in which a receiver requests what it misses, each after a random back-off, and the NACKs of a round."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Final

from protocol.constants import NACK_DATAGRAMS_PER_ROUND_MAX, NACK_RUNS_MAX
from protocol.receiving.group_timing import GroupTiming
from protocol.receiving.object_reception import ObjectReception
from protocol.receiving.receiver_statistics import ReceiverStatistics
from protocol.shared.feedback_timing import nack_backoff_s
from protocol.wire.messages import Nack

_PAUSE_MIN_S: Final = 0.005
"""Shortest time between two rounds: bounds the work at the smallest round-trip times."""


class NackRounds:
    """Schedule of the rounds.

    Attributes:
        due_at: time of the next round, monotonic seconds; infinite if none is planned.
    """

    def __init__(self, group: GroupTiming, statistics: ReceiverStatistics, rng: random.Random) -> None:
        """Start without a round; ``rng`` is the randomness of the back-off."""
        self.due_at = math.inf
        self._group = group
        self._statistics = statistics
        self._rng = rng

    def plan(self, receptions: Iterable[ObjectReception], now: float) -> None:
        """Plan a round after a random back-off if something is missing, unless one is planned already."""
        if math.isinf(self.due_at) and any(reception.open_count for reception in receptions):
            backoff_s = nack_backoff_s(self._rng, self._group.grtt_s, self._group.receiver_count)
            self.due_at = now + max(_PAUSE_MIN_S, backoff_s)

    def cancel(self) -> None:
        """Cancel the planned round, so that the next loss draws a back-off of its own."""
        self.due_at = math.inf

    def take_due(self, now: float) -> bool:
        """Return whether a round is due; if so, none is planned any more."""
        if now < self.due_at:
            return False
        self.due_at = math.inf
        return True

    def nacks(self, reception: ObjectReception, next_sequence: int, now: float) -> list[Nack]:
        """Return the NACKs of an object that are due in this round.

        Args:
            reception: the object.
            next_sequence: number that the sender has reached: what it sends from there on may answer.
            now: monotonic seconds.
        """
        blocks_max = NACK_RUNS_MAX * NACK_DATAGRAMS_PER_ROUND_MAX
        due = reception.take_due_nacks(blocks_max, retry_at=now + self._group.retry_s, now=now)
        runs = _as_runs(due)
        nacks = [
            Nack(
                object=reception.object_index,
                sequence=next_sequence,
                deficits=tuple(runs[start : start + NACK_RUNS_MAX]),
            )
            for start in range(0, len(runs), NACK_RUNS_MAX)
        ]
        self._statistics.nacks_sent_count += len(nacks)
        self._statistics.nacked_symbol_count += sum(deficit for _, deficit in due)
        return nacks


def _as_runs(due: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return ``(first block, count, deficit)`` of consecutive blocks with the same deficit."""
    runs: list[tuple[int, int, int]] = []
    for block, deficit in due:
        if runs and runs[-1][0] + runs[-1][1] == block and runs[-1][2] == deficit:
            first, count, _ = runs[-1]
            runs[-1] = (first, count + 1, deficit)
        else:
            runs.append((block, 1, deficit))
    return runs
