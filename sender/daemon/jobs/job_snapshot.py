"""Snapshots of a running cast for live events: the cast and its machines now."""

from __future__ import annotations

import math
import time
from typing import Final

from sender.cast.reporting.snapshot import CastView, ReceiverView
from sender.daemon.jobs.job_records import JobRecords
from sender.daemon.jobs.record_mapping import ended_machine, idle_cast, live_machine
from sender.store.records.casts import CastMachine
from sender.store.records.live import LiveCast, LiveMachine

_FRESH_S: Final = 0.1
"""Subscribers that read at the same moment share a view."""


class JobSnapshot:
    """The latest view of a cast's session, as records. Not thread-safe: use it on the event loop.

    Attributes:
        view: the latest view of the session; None before the first.
    """

    def __init__(self, records: JobRecords) -> None:
        self.view: CastView | None = None
        self._records = records
        self._viewed_at = -math.inf
        self._machines_version: tuple[CastView | None, int] = (None, -1)
        self._machines: list[LiveMachine] = []
        self._by_name: dict[str, tuple[object, LiveMachine]] = {}

    @property
    def is_fresh(self) -> bool:
        """Return whether the view has just been taken."""
        return time.monotonic() - self._viewed_at <= _FRESH_S

    def update(self, view: CastView, now: float) -> None:
        """Replace the view by one taken at ``now``."""
        self.view, self._viewed_at = view, now

    def live_cast(self) -> LiveCast:
        """Return the cast now."""
        cast, view = self._records.cast, self.view
        if view is None or cast.phase.ended:
            return idle_cast(cast, local=True)
        return LiveCast(
            cast=cast,
            local=True,
            rate_bytes_per_s=0.0 if cast.paused else view.rate_bytes_per_s,
            achieved_bytes_per_s=0.0 if cast.paused else view.achieved_bytes_per_s,
            elapsed_s=cast.seconds,
            eta_s=None if cast.paused else view.eta_s,
            pass_index=view.pass_index,
            pass_progress=view.pass_progress,
            bottleneck=view.bottleneck.text if view.casting and not cast.paused else "",
        )

    def live_machines(self) -> list[LiveMachine]:
        """Return the machines now; the same list while nothing has changed."""
        records = self._records
        version = (self.view, records.change_count)
        if self.view is None or self._machines_version == version:
            return self._machines
        views: dict[str, ReceiverView] = {}
        # Of an ended cast the lines count: its session still waits for machines.
        if not records.cast.phase.ended:
            views = {receiver.name: receiver for receiver in self.view.receivers}
        self._machines = [
            self._live_machine(views[name], row)
            if name in views
            else ended_machine(row, records.cast.plan.room_id)
            for name, row in records.machines.items()
        ]
        self._machines_version = version
        return self._machines

    def _live_machine(self, view: ReceiverView, row: CastMachine) -> LiveMachine:
        """Return the same object, ETA included, until something else of the machine changes: only changes are sent."""
        cast = self._records.cast
        version = (view, row, cast.paused, cast.casting_at)
        known = self._by_name.get(row.name)
        if known is None or known[0] != version:
            known = version, live_machine(cast, view, row, position="", online=False)
            self._by_name[row.name] = known
        return known[1]
