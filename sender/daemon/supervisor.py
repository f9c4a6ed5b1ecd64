"""The supervisor of the daemon's casts: it leases, runs and ends them.

::

    create ──► database (planned) ──► leased by a daemon ──► CastJob: gathering ► casting ► tail ──► ended
                    ▲                        │ renews its leases every 2 s
                    └── a daemon that died ◄─┘ another daemon takes its casts over and resumes them

The database is queried every :data:`LEASE_BEAT_S`. A running cast never waits for it: its records
go through the recorder.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from protocol.errors import DatabaseError, DiskcastError
from sender.daemon.cast_commands import CastCommands
from sender.daemon.jobs.cast_executor import CastExecutor
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.daemon.jobs.job_timeline import JobEvent
from sender.daemon.lease_acquirer import LeaseAcquirer
from sender.store.records.casts import Cast, CastPhase
from sender.store.repositories.leases import LEASE_BEAT_S
from sender.store.store import Store

_STOP_S: Final = 5.0
"""Time for casts to leave their groups when the daemon stops."""

_log = structlog.get_logger(__name__)


class Supervisor:
    """The casts that this daemon leases and runs. Not thread-safe: use it on the event loop."""

    def __init__(
        self,
        store: Store,
        registry: CastRegistry,
        leases: LeaseAcquirer,
        commands: CastCommands,
        executor: CastExecutor,
        *,
        casts_at_once: int,
    ) -> None:
        self._store = store
        self._registry = registry
        self._leases = leases
        self._commands = commands
        self._executor = executor
        self._casts_at_once = casts_at_once
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Lease and run casts until cancelled; running casts are then left to another daemon or the next start."""
        work = self._registry.work
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    await self._poll(group)
                except DatabaseError as error:
                    self._leases.reset_after_outage()
                    _log.warning("database_unreachable", error=str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LEASE_BEAT_S):
                        await work.wait()
                work.clear()

    async def leave(self) -> None:
        """Leave the groups silently, so that the casts continue in this daemon's next run or another daemon's."""
        for job in self._registry.jobs.values():
            job.abandon()
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=_STOP_S)

    async def _poll(self, group: asyncio.TaskGroup) -> None:
        """Renew the leases, carry out requests, start casts that are due."""
        store, registry = self._store, self._registry
        leased = registry.leased_ids()
        held = await self._leases.renew(leased)
        for cast_id in set(leased) - held:
            self._abandon_lost(cast_id)
        await self._commands.carry_out_requests()
        known = registry.ended_ids() | self._tasks.keys()
        acquired = await self._leases.acquire(known, self._casts_at_once - len(registry.jobs))
        recorded = await store.run(store.casts.unfinished)
        registry.replace_unfinished(recorded)
        for cast in acquired:
            if cast.cast_id not in self._tasks:
                self._start(group, cast)

    def _abandon_lost(self, cast_id: str) -> None:
        job = self._registry.jobs.get(cast_id)
        if job is not None and job.ended_at is None:
            _log.error("cast_lost_to_another_daemon", cast=cast_id)
            job.abandon()

    def _start(self, group: asyncio.TaskGroup, cast: Cast) -> None:
        task = group.create_task(self._run(cast), name=f"cast {cast.cast_id}")
        self._tasks[cast.cast_id] = task
        task.add_done_callback(lambda _task: self._tasks.pop(cast.cast_id, None))

    async def _run(self, cast: Cast) -> None:
        """Run one cast, from its lease to its end; an error ends the cast, not the daemon."""
        registry = self._registry
        with structlog.contextvars.bound_contextvars(cast=cast.cast_id):
            try:
                await self._executor.run(cast)
            except asyncio.CancelledError:
                job = registry.jobs.get(cast.cast_id)
                if job is None or job.cancel_reason is None:
                    raise
                job.end(CastPhase.CANCELLED, job.cancel_reason)
            except Exception as error:  # noqa: BLE001  an error in one cast must not end the others
                self._fail(cast, error)
            finally:
                registry.retire(cast.cast_id)
                registry.request_poll()
        self._leases.release(cast.cast_id)

    def _fail(self, cast: Cast, error: Exception) -> None:
        if isinstance(error, DiskcastError):
            reason = str(error)
        else:
            reason = f"an error inside the daemon, please report it: {type(error).__name__}: {error}"
            _log.error("cast_internal_error", exc_info=error)
        job = self._registry.jobs.get(cast.cast_id) or self._executor.add_job(cast)
        job.timeline.add_event(JobEvent.CAST_FAILED, reason)
        job.end(CastPhase.FAILED, reason)
