"""The daemon's casts: leased, run, ended, and taken over when their daemon is gone.

::

    create ──► database (planned) ──► leased by a daemon ──► LiveRun: gathering ► casting ► tail ──► ended
                    ▲                        │ beats every 2 s
                    └── a daemon that died ◄─┘ its casts are leased anew, and go on with what is still lacking

The database is asked every :data:`LEASE_BEAT_S`, and a cast that runs never waits for it:
what it has to remember goes through the recorder.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from protocol.control.check_in import CheckIn, CheckInAnswer
from protocol.errors import DatabaseError, DiskcastError
from sender.daemon.cast_job import CastJob
from sender.daemon.change_notifier import Changes
from sender.daemon.execute_cast import execute_cast
from sender.daemon.lease_acquirer import LeaseTaker
from sender.daemon.leases import Owner
from sender.daemon.presence import save_presence
from sender.daemon.rate_share import share_rates
from sender.store.records.casts import Cast, CastPhase
from sender.store.records.problems import Problem
from sender.store.repositories.audit import new_entry_key
from sender.store.repositories.leases import LEASE_BEAT_S

if TYPE_CHECKING:
    from sender.daemon.context import Services

_STOP_S: Final = 5.0
"""What casts get to leave their rooms when the daemon ends."""
_STUCK_S: Final = 30.0
"""A transmitter that should send and hasn't for this long won't any more."""
_ENDING_S: Final = 60.0
"""A cast's lease is kept for this long after its end, or until the database knows of the end."""
_ENDED_RUNS_MAX: Final = 100
"""Ended runs whose metrics are still shown."""

_log = structlog.get_logger(__name__)


class Supervisor:
    """See the module's docstring. It belongs to the event loop.

    Attributes:
        owner: what this daemon is called in the database.
        runs: casts that this daemon runs now.
        unfinished: every cast that hasn't ended, of all daemons, as they were at the last look.
        changes: wakes those who wait for a cast to begin or to move.
    """

    def __init__(self, services: Services, owner: Owner) -> None:
        """Prepare; ``services.supervisor`` is set to this by the caller."""
        self._services = services
        self.owner = owner
        self.runs: dict[str, CastJob] = {}
        self.unfinished: dict[str, Cast] = {}
        self.changes = Changes()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: deque[CastJob] = deque(maxlen=_ENDED_RUNS_MAX)
        self._leases = LeaseTaker(services, owner)
        self._poke = asyncio.Event()
        self._stopping = False

    # -- life -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Lease and run casts until cancelled; casts that run then are left to whoever comes next."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(share_rates(self._services))
                group.create_task(save_presence(self._services))
                while True:
                    await self._look_unless_down()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LEASE_BEAT_S):
                            await self._poke.wait()
                    self._poke.clear()
        finally:
            self._stopping = True

    async def leave(self) -> None:
        """Leave the rooms without a word, so that their casts go on in this daemon's next run or another one's."""
        self._stopping = True
        for live in self.runs.values():
            self._abandon(live)
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=_STOP_S)

    async def _look_unless_down(self) -> None:
        try:
            await self._look()
        except DatabaseError as error:
            self._leases.blind()
            _log.warning("database_unreachable", error=str(error))

    async def _look(self) -> None:
        """Beat, obey, take what is due."""
        store, owner = self._services.store, str(self.owner)
        running = list(self.runs)
        # Of casts that have just ended the database may not have heard yet: nobody shall take them for dead.
        ending = [
            live.cast_id for live in self._ended if time.monotonic() - (live.ended_at or 0.0) < _ENDING_S
        ]
        ours = await store.run(store.leases.renew, owner, [*running, *ending])
        for cast_id in set(running) - set(ours):
            self._give_up(cast_id)
        await self._services.steering.obey_requests()
        known = {live.cast_id for live in self._ended} | self._tasks.keys()
        taken = await self._leases.take(known, self._services.config.network.casts_at_once - len(self.runs))
        before = self.unfinished
        recorded = await store.run(store.casts.unfinished)
        ended_here = {live.cast_id for live in self._ended}
        self.unfinished = {cast.cast_id: cast for cast in recorded if cast.cast_id not in ended_here}
        for live in self.runs.values():
            self.unfinished[live.cast_id] = live.cast
        for cast in taken:
            if cast.cast_id not in self._tasks:
                self._start(cast)
        if {key: (cast.phase, cast.control_url) for key, cast in before.items()} != {
            key: (cast.phase, cast.control_url) for key, cast in self.unfinished.items()
        }:
            self.changes.tell()

    def _give_up(self, cast_id: str) -> None:
        live = self.runs.get(cast_id)
        if live is None or live.ended_at is not None:
            return
        _log.error("cast_lost_to_another_daemon", cast=cast_id)
        self._abandon(live)

    def _abandon(self, live: CastJob) -> None:
        if live.run is not None:
            live.run.abandon()
        else:
            self.stop_waiting(live.cast_id)

    def stop_waiting(self, cast_id: str) -> None:
        """End a cast of this daemon that doesn't speak to its room yet, because its image is being fetched."""
        if cast_id in self._tasks:
            self._tasks[cast_id].cancel()

    def _start(self, cast: Cast) -> None:
        task = self._group.create_task(self._run(cast), name=f"cast {cast.cast_id}")
        self._tasks[cast.cast_id] = task
        task.add_done_callback(lambda _task: self._tasks.pop(cast.cast_id, None))

    async def _run(self, cast: Cast) -> None:
        """One cast, from its lease to its end; whatever goes wrong is the cast's, not the daemon's."""
        with structlog.contextvars.bound_contextvars(cast=cast.cast_id):
            try:
                await execute_cast(self._services, cast, self.runs, on_change=self.note_change)
            except asyncio.CancelledError:
                live = self.runs.get(cast.cast_id)
                if live is None or live.cancel_reason is None:
                    raise
                live.end(CastPhase.CANCELLED, live.cancel_reason)
            except Exception as error:  # noqa: BLE001  a fault in one cast must not end the others
                self._fail(cast, error)
            finally:
                live = self.runs.pop(cast.cast_id, None)
                if live is not None:
                    self._put_away(live)
                self.note_change()
        self._release(cast.cast_id)

    def _fail(self, cast: Cast, error: Exception) -> None:
        live = self.runs.get(cast.cast_id)
        if isinstance(error, DiskcastError):
            reason = str(error)
        else:
            reason = f"an error inside the daemon, please report it: {type(error).__name__}: {error}"
            _log.error("cast_internal_error", exc_info=error)
        if live is None:
            live = self.runs[cast.cast_id] = CastJob(cast, self._services.recorder, owner=str(self.owner))
        live.tell("cast_failed", reason)
        live.end(CastPhase.FAILED, reason)

    def _put_away(self, live: CastJob) -> None:
        live.ended_at = time.monotonic()
        if live.cast.phase.ended:
            self.unfinished.pop(live.cast_id, None)
            self._audit_end(live.cast)
            self._ended.append(live)

    async def check_in(self, check_in: CheckIn, address: str) -> CheckInAnswer:
        """Answer an agent; see :class:`sender.daemon.check_in.CheckInDesk`."""
        return await self._services.desk.answer(check_in, address)

    def _release(self, cast_id: str) -> None:
        """Give the lease back, after what was to be remembered."""
        self._services.recorder.put(("lease", cast_id), "leases.release", str(self.owner), cast_id)

    def note_change(self) -> None:
        """A cast was planned, or has moved: those who wait look again, and so does this daemon."""
        self.changes.tell()
        self._poke.set()

    def _audit_end(self, cast: Cast) -> None:
        detail = {
            "image": cast.image_name,
            "room": cast.plan.room_id,
            "reason": cast.reason,
            "complete": cast.complete_count,
            "failed": cast.failed_count,
        }
        action = f"cast.{cast.phase.value}"
        key = new_entry_key()
        self._services.recorder.put(
            ("audit", key),
            "audit.add",
            f"daemon {self.owner.name}",
            action,
            f"cast {cast.cast_id}",
            detail,
            entry_key=key,
            at=self._services.store.now(),
        )

    # -- what others read -------------------------------------------------------------------------------------

    def casting(self) -> list[CastJob]:
        """Runs with a session: those of now, and ended ones for as long as their metrics are kept."""
        retention_s = self._services.config.metrics.retention_s
        now = time.monotonic()
        while self._ended and now - (self._ended[0].ended_at or 0.0) > max(retention_s, _ENDING_S):
            self._ended.popleft()
        running = {live.cast_id for live in self.runs.values() if live.run is not None}
        ended = [
            live
            for live in self._ended
            if live.cast_id not in running
            and live.run is not None
            and now - (live.ended_at or 0.0) <= retention_s
        ]
        return [*(live for live in self.runs.values() if live.run is not None), *ended]

    def live_run(self, cast_id: str) -> CastJob | None:
        """A run of now or of lately."""
        live = self.runs.get(cast_id)
        return live or next((ended for ended in reversed(self._ended) if ended.cast_id == cast_id), None)

    def cast_now(self, cast: Cast) -> Cast:
        """The newest that is known of a cast."""
        live = self.live_run(cast.cast_id)
        return live.cast if live is not None else cast

    def phases_now(self) -> dict[str, CastPhase]:
        """The phases of casts of now or of lately, by id: the database hears of them a moment later."""
        return {live.cast_id: live.cast.phase for live in (*self._ended, *self.runs.values())}

    def problems(self) -> list[Problem]:
        """Casts that don't get on."""
        found = []
        for live in self.runs.values():
            if live.run is not None and live.run.read_waiting_s > 2.0:
                text = (
                    f"cast {live.cast_id}: a read of image {live.image_name!r} hasn't returned for "
                    f"{live.run.read_waiting_s:.0f} s: check the disk or server that it is on"
                )
                found.append(Problem("cast", text, datetime.now(UTC)))
        return found

    def stuck(self) -> str | None:
        """What should move and doesn't, for the service manager's watchdog; None if all is well."""
        for live in self.runs.values():
            run = live.run
            if run is None or live.cast.paused or run.read_waiting_s > 1.0:
                continue
            with run.shared.read() as (session, now):
                if session.sending_overdue_s(now) > _STUCK_S:
                    return f"cast {live.cast_id}: the transmitter doesn't send"
        return None
