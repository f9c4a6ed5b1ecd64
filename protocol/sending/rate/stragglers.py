"""Detection of stragglers: by comparison and, where the group's own limit is unknown, by trial.

A receiver is *slow* while its sustainable rate is below a share of the group's rate, the rate that at least half of the
members can sustain. From the first moment it no longer limits the others: a few seconds at a tenth of the rate cost a
room more than the repairs of one machine. If it stays slow, it is demoted or dropped. It recovers by proof only: a time
without trouble may also be one without data.

When a receiver limits a group whose own limit is unknown, a *trial* finds out: for a moment it doesn't count.
Either the others prove to be much faster, or they meet a limit as well, or neither happens and it counts again. The
first trial runs at the first sign of trouble, before a single machine has slowed the others down.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Final

from protocol.model.bottleneck import Cause
from protocol.model.cast_policy import SlowPolicy
from protocol.model.session_records import ReceiverId
from protocol.sending.rate.capacity import ALIKE, Capacity

_RECOVERED: Final = 1.5
"""Times the threshold: between the two a slow receiver stays slow, so that none changes sides with every report."""
SLOW_FOR_A_MOMENT_S: Final = 3.0
"""A receiver that is slow, or keeps up again, for less isn't reported: members meet a common limit one after the other,
and the host of a virtual machine may leave it without a processor for seconds."""
_TRIAL_S: Final = 1.2
"""Three doublings, and the reports of what arrived at the top."""
_TRIAL_INTERVAL_S: Final = 10.0
"""A trial floods the limiting receiver for a second: no more than a tenth of the time."""
_TRIAL_INTERVAL_MAX_S: Final = 80.0
"""End of the doubling: a group that speeds up in the middle of a cast is found again."""


class StragglerChange(enum.StrEnum):
    """A change in a receiver's standing."""

    SLOW = "slow"
    RECOVERED = "recovered"
    OVERDUE = "overdue"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """A change and its grounds."""

    receiver_id: ReceiverId
    change: StragglerChange
    rate_bytes_per_s: float
    group_rate_bytes_per_s: float
    cause: Cause

    @property
    def grounds(self) -> tuple[float, float, str]:
        """The receiver's sustainable rate, the group's rate and the receiver's limit, as session events report them."""
        return self.rate_bytes_per_s, self.group_rate_bytes_per_s, self.cause.value


class StragglerWatch:
    """Comparison of the main group's members; the caller demotes, drops or finishes stragglers.

    Attributes:
        slow_since: start of the present slow period, by receiver.
        found: latest verdict on each receiver that is or was slow.
    """

    def __init__(self, policy: SlowPolicy, below: float, for_s: float) -> None:
        self._policy = policy
        self._below = below
        self._for_s = for_s
        self.slow_since: dict[ReceiverId, float] = {}
        self.found: dict[ReceiverId, Verdict] = {}
        self._reported: set[ReceiverId] = set()
        self._overdue: set[ReceiverId] = set()
        self._proven_since: dict[ReceiverId, float] = {}
        self._trial: frozenset[ReceiverId] = frozenset()
        self._trial_started_at = -math.inf
        self._trial_allowed_at = -math.inf
        self._trial_interval_s = _TRIAL_INTERVAL_S

    def judge(self, members: Mapping[ReceiverId, Capacity], now: float) -> list[Verdict]:
        """Compare ``members`` and set which of them are exempt; return the changes.

        Args:
            members: receivers whose repairs don't wait for the tail.
            now: monotonic seconds.
        """
        for receiver_id in self.slow_since.keys() - members.keys():
            del self.slow_since[receiver_id]
            self._proven_since.pop(receiver_id, None)
        if self._policy is SlowPolicy.WAIT or len(members) < 2:
            return self._forgive(members)
        group_rate = _upper_median([item.sustainable_bytes_per_s for item in members.values()])
        verdicts = [
            verdict
            for receiver_id, capacity in members.items()
            if (verdict := self._judge_one(receiver_id, capacity, group_rate, now)) is not None
        ]
        self._run_trial(members, now)
        for receiver_id, capacity in members.items():
            capacity.exempt = receiver_id in self.slow_since or receiver_id in self._trial
        return verdicts

    def _judge_one(
        self, receiver_id: ReceiverId, capacity: Capacity, group_rate: float, now: float
    ) -> Verdict | None:
        sustainable = capacity.sustainable_bytes_per_s
        threshold = self._below * group_rate
        change = None
        since = self.slow_since.get(receiver_id)
        if since is None or sustainable <= _RECOVERED * threshold:
            self._proven_since.pop(receiver_id, None)
        lossy = capacity.usual_loss > 1.0 - self._below
        if since is None:
            if (lossy or capacity.limited) and sustainable < threshold:
                self.slow_since[receiver_id] = now
                self._reported.discard(receiver_id)  # left over from before it left and returned
                self._overdue.discard(receiver_id)
        elif sustainable > _RECOVERED * threshold:
            if self._keeps_up(receiver_id, now):
                del self.slow_since[receiver_id]
                if receiver_id in self._reported:
                    change = StragglerChange.RECOVERED
                capacity.raise_knee()
        elif receiver_id not in self._reported:
            if now - since >= min(SLOW_FOR_A_MOMENT_S, self._for_s):
                self._reported.add(receiver_id)
                change = StragglerChange.SLOW
        elif now - since >= self._for_s and receiver_id not in self._overdue:
            self._overdue.add(receiver_id)
            change = StragglerChange.OVERDUE
        if receiver_id not in self.slow_since and change is None:
            return None
        verdict = Verdict(
            receiver_id, change or StragglerChange.SLOW, sustainable, group_rate, capacity.cause
        )
        self.found[receiver_id] = verdict
        return verdict if change else None

    def _keeps_up(self, receiver_id: ReceiverId, now: float) -> bool:
        """Return whether a slow receiver that proves enough counts again: after a moment, if it was reported."""
        since = self._proven_since.setdefault(receiver_id, now)
        return receiver_id not in self._reported or now - since >= SLOW_FOR_A_MOMENT_S

    def _forgive(self, members: Mapping[ReceiverId, Capacity]) -> list[Verdict]:
        """Let every member count: there is nothing to compare with."""
        verdicts = [
            Verdict(
                receiver_id,
                StragglerChange.RECOVERED,
                members[receiver_id].sustainable_bytes_per_s,
                0.0,
                Cause.NONE,
            )
            for receiver_id in self.slow_since
            if receiver_id in self._reported
        ]
        self.slow_since.clear()
        self._proven_since.clear()
        self._trial = frozenset()
        for capacity in members.values():
            capacity.exempt = False
        return verdicts

    def reset(self) -> None:
        """Start with another group, in which no receiver is slow yet."""
        self.slow_since.clear()
        self._proven_since.clear()
        self._overdue.clear()
        self._trial = frozenset()
        self._trial_allowed_at = -math.inf

    # -- trials -----------------------------------------------------------------------------------------------

    def _run_trial(self, members: Mapping[ReceiverId, Capacity], now: float) -> None:
        counted = {key: item for key, item in members.items() if key not in self.slow_since}
        knees = [item.knee_bytes_per_s for item in counted.values()]
        least = min(knees, default=math.inf)
        # A minority limits the group, and the majority's limit is unknown.
        undecided = math.isfinite(least) and _upper_median(knees) == math.inf
        limiting = {key for key, item in counted.items() if item.knee_bytes_per_s <= ALIKE * least}
        if not self._trial:
            if undecided and now >= self._trial_allowed_at:
                self._trial = frozenset(limiting)
                self._trial_started_at = now
        elif undecided and now - self._trial_started_at <= _TRIAL_S:
            self._trial |= limiting
        else:
            proved = any(key in self.slow_since for key in self._trial)
            self._trial = frozenset()
            self._trial_allowed_at = now + self._trial_interval_s
            if not proved:
                self._trial_interval_s = min(2 * self._trial_interval_s, _TRIAL_INTERVAL_MAX_S)


def _upper_median(values: list[float]) -> float:
    """Return the value that at least half of them reach; of two the larger."""
    return sorted(values)[len(values) // 2]
