"""Start conditions of a cast, required receivers and time limit, and the wait for late ones at its end."""

from __future__ import annotations

import enum
import math

from protocol.constants import EXPECTED_WAIT_S, MANIFEST_WAIT_S
from protocol.model.cast_policy import CastPolicy
from protocol.model.session_records import ReceiverState
from protocol.sending.roster import Roster


class Attendance(enum.Enum):
    """Result of a check of the room."""

    WAITING = "waiting"
    """Receivers are missing."""
    GATHERED = "gathered"
    """Image data may start."""
    NOBODY = "nobody"
    """The time is up, and no receiver has joined."""


class Gathering:
    """Check of the roster against the policy's start conditions."""

    def __init__(self, policy: CastPolicy, roster: Roster, now: float) -> None:
        """Start to wait for the receivers that ``policy`` requires."""
        self._policy = policy
        self._roster = roster
        self._started_at = now
        self._start_requested = False
        self._absent_count = 0
        self._expected_count = 0
        self._enough_at: float | None = None
        self._late_count = 0
        self._left_alone_at: float | None = None

    def start_now(self) -> None:
        """Wait only for the first receiver from now on."""
        self._start_requested = True

    def stop_waiting_for(self, count: int) -> None:
        """Don't wait for ``count`` of the required receivers, which won't join."""
        self._absent_count = count

    def expect_more(self, count: int) -> None:
        """Wait for ``count`` receivers besides those that have joined: they are about to join."""
        self._expected_count = count

    def expect_late(self, count: int) -> None:
        """Don't be over before ``count`` receivers that are about to join have joined, within ``EXPECTED_WAIT_S``."""
        self._late_count = count

    def over(self, now: float) -> bool:
        """Return whether every receiver of a started cast has ended, and none is about to join.

        A receiver that comes to a cast which is nearly over would otherwise find it ended between two requests.
        """
        if self._roster.active_count:
            self._left_alone_at = None
            return False
        if self._left_alone_at is None:
            self._left_alone_at = now
        return not self._late_count or now - self._left_alone_at >= EXPECTED_WAIT_S

    def check(self, now: float) -> Attendance:
        """Check whether enough receivers have joined, and hold the manifest or had time to receive it."""
        policy = self._policy
        waited_s = now - self._started_at
        wait_s = math.inf if policy.by_hand or policy.max_wait_s is None else policy.max_wait_s
        overdue = self._start_requested or waited_s >= wait_s
        records = self._roster.records.values()
        present_count = sum(
            record.state.active or record.state is ReceiverState.COMPLETE for record in records
        )
        if waited_s >= wait_s and present_count == 0:
            loading = self._expected_count and waited_s < wait_s + EXPECTED_WAIT_S
            return Attendance.WAITING if loading else Attendance.NOBODY
        enough = present_count + self._absent_count >= policy.wait_for and not policy.by_hand
        enough = enough and not self._expected_count
        if present_count == 0 or not (enough or overdue):
            self._enough_at = None
            return Attendance.WAITING
        if self._enough_at is None:
            self._enough_at = now
        ready = all(record.ready for record in self._roster.active)
        manifests_had_time = now - self._enough_at >= MANIFEST_WAIT_S
        return Attendance.GATHERED if ready or manifests_had_time else Attendance.WAITING
