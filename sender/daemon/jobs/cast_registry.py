"""The casts that a daemon knows: running here, ended here recently, and unfinished anywhere."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from sender.daemon.jobs.cast_job import CastJob
from sender.daemon.jobs.change_notifier import ChangeNotifier
from sender.store.records.casts import Cast, CastPhase

_ENDING_S: Final = 60.0
"""A cast's lease is kept for this long after its end, or until the database knows of the end."""
_ENDED_JOBS_MAX: Final = 100
"""Ended jobs whose metrics are still shown."""


class CastRegistry:
    """Casts in memory. Not thread-safe: use it on the event loop.

    Attributes:
        jobs: casts that this daemon runs now, by id.
        unfinished: every cast that hasn't ended, of all daemons, as of the last query of the database.
        changes: notified when a cast starts, changes or ends.
        work: set when the supervisor should query the database at once.
    """

    def __init__(self, *, ended_kept_s: float) -> None:
        """Start empty.

        Args:
            ended_kept_s: time for which the metrics of an ended cast are shown.
        """
        self.jobs: dict[str, CastJob] = {}
        self.unfinished: dict[str, Cast] = {}
        self.changes = ChangeNotifier()
        self.work = asyncio.Event()
        self._ended: deque[CastJob] = deque(maxlen=_ENDED_JOBS_MAX)
        self._ended_kept_s = ended_kept_s

    # -- reading ----------------------------------------------------------------------------------------------

    def job(self, cast_id: str) -> CastJob | None:
        """Return the job of a cast that runs here or ended here recently, or None."""
        running = self.jobs.get(cast_id)
        return running or next((job for job in reversed(self._ended) if job.cast_id == cast_id), None)

    def latest(self, cast: Cast) -> Cast:
        """Return the latest known record of a cast."""
        job = self.job(cast.cast_id)
        return job.cast if job is not None else cast

    def phases(self) -> dict[str, CastPhase]:
        """Return the phases of casts that run or ran here, by id. The database receives them a moment later."""
        return {job.cast_id: job.cast.phase for job in (*self._ended, *self.jobs.values())}

    def ended_ids(self) -> set[str]:
        """Return the casts that ended here recently."""
        return {job.cast_id for job in self._ended}

    def leased_ids(self) -> list[str]:
        """Return the casts whose leases must be renewed.

        They include casts that have just ended: until their end is in the database, no other daemon may take them over.
        """
        now = time.monotonic()
        return [*self.jobs, *(job.cast_id for job in self._ended if now - (job.ended_at or 0.0) < _ENDING_S)]

    def jobs_with_session(self) -> list[CastJob]:
        """Return the jobs that multicast, and the ended ones whose metrics are still shown."""
        now = time.monotonic()
        while self._ended and now - (self._ended[0].ended_at or 0.0) > max(self._ended_kept_s, _ENDING_S):
            self._ended.popleft()
        running = [job for job in self.jobs.values() if job.run is not None]
        running_ids = {job.cast_id for job in running}
        ended = [
            job
            for job in self._ended
            if job.cast_id not in running_ids
            and job.run is not None
            and now - (job.ended_at or 0.0) <= self._ended_kept_s
        ]
        return [*running, *ended]

    # -- changing ---------------------------------------------------------------------------------------------

    def add_planned(self, cast: Cast) -> None:
        """Add a new cast."""
        self.unfinished[cast.cast_id] = cast
        self.request_poll()

    def remove_planned(self, cast_id: str) -> None:
        """Remove a cast that ended before any daemon ran it."""
        self.unfinished.pop(cast_id, None)

    def replace_unfinished(self, recorded: Iterable[Cast]) -> None:
        """Replace the list by the database's; this daemon's own casts are more current in memory."""
        before = self.unfinished
        ended = self.ended_ids()
        self.unfinished = {cast.cast_id: cast for cast in recorded if cast.cast_id not in ended}
        for job in self.jobs.values():
            self.unfinished[job.cast_id] = job.cast
        if _assignable(before) != _assignable(self.unfinished):
            self.changes.notify()

    def retire(self, cast_id: str) -> None:
        """Remove a job that no longer runs here; one whose cast has ended is kept for a while."""
        job = self.jobs.pop(cast_id, None)
        if job is None:
            return
        job.ended_at = time.monotonic()
        if job.cast.phase.ended:
            self.unfinished.pop(cast_id, None)
            self._ended.append(job)

    def request_poll(self) -> None:
        """Report a change that the supervisor must act on: it queries the database at once."""
        self.changes.notify()
        self.work.set()


def _assignable(casts: dict[str, Cast]) -> dict[str, tuple[CastPhase, str]]:
    return {cast_id: (cast.phase, cast.control_url) for cast_id, cast in casts.items()}
